"""What the controller shows of a VM after what it learns, and whose word it believes."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest

from serai.core.observed import ALIVE, BEGUN, REPORTS, TRANSITIONS, Event, after, believed, merged, proves_commit
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Lease
from serai.schema.resource import Condition
from serai.schema.vm import HOST_SILENT, VmReport, VmState, VmStatus

S, E = VmState, Event
VM = VmId("a" * 12)
THEN, NOW = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
EVERY = frozenset(S)
DOWN = frozenset({S.DEFINED, S.STOPPED, S.CRASHED})

TOLD: dict[Event, tuple[frozenset[VmState], VmState]] = {
    E.CREATED: (frozenset({S.DEFINED, S.STOPPED}), S.STOPPED),
    E.START: (EVERY - {S.RUNNING, S.PAUSED, S.STOPPING, S.MIGRATING}, S.STARTING),
    E.START_UNANSWERED: (EVERY, S.UNKNOWN),
    E.START_FAILED: (DOWN | {S.STARTING}, S.STOPPED),
    E.START_FAILED_AGAIN: (DOWN | {S.STARTING}, S.CRASHED),
    E.RELEASED: (EVERY, S.STOPPED),
    E.NOT_HELD: (frozenset({S.UNKNOWN}), S.STOPPED),
    E.UNLISTED: (frozenset({S.RUNNING, S.PAUSED, S.STOPPING, S.MIGRATING}), S.UNKNOWN),
    E.HOLDER_FOUND: (EVERY, S.UNKNOWN),
    E.FENCED: (EVERY - DOWN, S.CRASHED),
    E.MOVE_LOST: (EVERY, S.CRASHED),
    E.MOVE_ENDED: (frozenset({S.MIGRATING}), S.RUNNING),
}
"""Event to the states in which it tells something new, and the state that is shown then."""


def status(state: VmState, **fields: Any) -> VmStatus:
    return VmStatus(state=state, since=THEN, reason="before", host=HostName("h1"), epoch=1, **fields)


def said(state: VmState, host: str = "h1", epoch: int = 1, **fields: Any) -> VmReport:
    return VmReport(vm=VM, host=HostName(host), epoch=epoch, state=state, since=NOW, **fields)


@pytest.mark.parametrize(("event", "state"), list(itertools.product(Event, VmState)))
def test_what_is_learned(event: Event, state: VmState) -> None:
    states, shown = TOLD[event]
    found = after(status(state), event, "why", NOW)
    if state not in states:
        assert found is None
        return
    assert found is not None
    assert (found.state, found.reason) == (shown, "why")
    assert found.since == (THEN if shown is state else NOW)


def test_running_is_shown_on_the_word_of_a_journal_alone() -> None:
    assert {event for (_, event), shown in TRANSITIONS.items() if shown in BEGUN} == {E.MOVE_ENDED}


def test_a_vm_that_is_alive_is_never_shown_as_never_run() -> None:
    assert S.DEFINED not in TRANSITIONS.values()
    assert S.DEFINED not in REPORTS
    assert frozenset(ALIVE) == EVERY - DOWN


@pytest.mark.parametrize("event", [E.RELEASED, E.UNLISTED, E.FENCED, E.MOVE_LOST, E.START_UNANSWERED])
def test_no_qemu_is_shown_that_nobody_reports(event: Event) -> None:
    found = after(status(S.RUNNING, pid=7, guest_agent=True), event, "why", NOW)
    assert found is not None
    assert (found.pid, found.guest_agent) == (None, False)


def test_what_else_is_known_is_written_with_it() -> None:
    found = after(status(S.MIGRATING, pid=7), E.MOVE_ENDED, "arrived", NOW, host=HostName("h2"), epoch=2)
    assert found is not None
    assert (found.state, found.host, found.epoch, found.pid) == (S.RUNNING, "h2", 2, 7)


LEASE = Lease(vm=VM, epoch=1, host=HostName("h1"), highest=2, offered_to=HostName("h2"), offer_id="one")


@pytest.mark.parametrize("state", list(VmState))
def test_the_holders_word_is_believed(state: VmState) -> None:
    assert believed(LEASE, said(state)) is (state is not S.DEFINED)
    assert not believed(None, said(state))
    assert not believed(LEASE, said(state, epoch=0))
    assert not believed(LEASE, said(state, host="h3"))
    assert not believed(LEASE, said(state, host="h3", epoch=2))


@pytest.mark.parametrize("state", list(VmState))
def test_a_destination_is_believed_once_its_vcpus_may_run(state: VmState) -> None:
    assert proves_commit(LEASE, said(state, host="h2", epoch=2)) is (state in BEGUN)
    assert believed(LEASE, said(state, host="h2", epoch=2)) is (state in BEGUN)
    withdrawn = LEASE.model_copy(update={"offered_to": None, "offer_id": None})
    assert not believed(withdrawn, said(state, host="h2", epoch=2))


@pytest.mark.parametrize("state", list(VmState))
def test_a_report_is_shown_as_it_is_and_ends_the_silence_of_its_host(state: VmState) -> None:
    other = Condition(type="other", message="stays")
    silent = Condition(type=HOST_SILENT, message="goes")
    report = said(S.PAUSED, host="h2", epoch=2, reason="io-error", pid=9, accel="tcg", generation=3, restarts=1)
    found = merged(status(state, placement="chosen", conditions=[silent, other]), report)
    assert (found.state, found.host, found.epoch, found.reason, found.since) == (S.PAUSED, "h2", 2, "io-error", NOW)
    assert (found.pid, found.accel, found.running_generation, found.restarts) == (9, "tcg", 3, 1)
    assert (found.placement, found.conditions) == ("chosen", [other])
