"""A VM's recorded state: the journal first, one setter by the table, reports that an older one never overtakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.host.ground import VM, make_launch

from serai.core.lifecycle import VmEvent
from serai.host.journal import Journal
from serai.host.store import HostStore, VmRecord
from serai.host.vm.state import RecordedState
from serai.lib.clock import ManualClock
from serai.schema.errors import ConflictError
from serai.schema.vm import RestartPolicy, VmReport, VmState

RECORD = VmRecord(
    launch=make_launch(),
    epoch=1,
    restart=RestartPolicy.NEVER,
    autostart=True,
    autostart_order=0,
    state=VmState.STARTING,
)


class Kept:
    """A state on a journal of its own."""

    def __init__(self, journal: Journal) -> None:
        self.store = HostStore(journal)
        self.clock = ManualClock()
        self.reports: list[VmReport] = []
        self.state = RecordedState("h1", self.store, self.clock, self.reports.append, RECORD)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    journal = Journal.open(tmp_path / "journal")
    yield Kept(journal)
    journal.close()


def test_a_step_is_recorded_and_reported_with_its_time(kept: Kept) -> None:
    kept.state.follow(VmEvent.RUNS, "as asked", restarts=2)
    assert kept.store.vm(VM) == kept.state.record
    (report,) = kept.reports
    assert (report.state, report.reason, report.restarts) == (VmState.RUNNING, "as asked", 2)
    since = report.since
    kept.clock.advance(5)
    kept.state.follow(VmEvent.RESET)
    assert kept.reports[-1].since == since, "the state is the same"


def test_what_the_table_does_not_have_changes_nothing(kept: Kept) -> None:
    with pytest.raises(ConflictError, match="web1 is starting"):
        kept.state.follow(VmEvent.RESUME, wanted=False)
    assert kept.state.record == RECORD
    assert kept.store.vm(VM) is None
    assert not kept.reports


def test_sequences_grow_though_the_clock_stands(kept: Kept) -> None:
    first = [kept.state.current_report().sequence for _ in range(3)]
    assert first == sorted(set(first))
    kept.clock.advance(1)
    assert kept.state.current_report().sequence >= first[0] + 1_000_000


def test_a_forgotten_vm_does_not_come_back(kept: Kept) -> None:
    kept.state.follow(VmEvent.RUNS)
    kept.state.forget()
    kept.state.follow(VmEvent.CRASHED, "late")
    assert kept.store.vm(VM) is None
