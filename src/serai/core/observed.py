"""A VM's state as the controller observes it, as a transition table: nothing else changes the state that is shown.

`TRANSITIONS[(state, event)]` is the state that is shown next; an event that is not in the table for a state tells
nothing new of the VM, and nothing is written. What a host reports is no transition but the state itself: `REPORTS` says
what is believed, and `believed` whose word is. The VM's own life, on its host, is in `lifecycle.py`.

A report is believed by the lease: one of an older epoch, or from a host that does not hold the lease, says nothing of
the VM. One of the epoch on offer, from the host that it was offered to, with vCPUs that may run, proves that the
destination has committed: nothing else starts them (host/migration).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from serai.schema.lease import Lease
from serai.schema.vm import HOST_SILENT, VmReport, VmState, VmStatus

S = VmState


class Event(StrEnum):
    CREATED = "created"
    """It is there, and was not started."""
    START = "start"
    START_UNANSWERED = "start-unanswered"
    """It may have started or not: its host's next report says which."""
    START_FAILED = "start-failed"
    """It did not run."""
    START_FAILED_AGAIN = "start-failed-again"
    """It did not run, and had crashed before."""
    RELEASED = "released"
    """Its host has given up the lease: nothing of it runs there."""
    NOT_HELD = "not-held"
    """Its host holds nothing of it: the start that was not answered never came there."""
    UNLISTED = "unlisted"
    """Its host holds the lease, and a full report of that host does not list it."""
    HOLDER_FOUND = "holder-found"
    """A host's journal holds a lease that the database did not know; the host has yet to report the VM."""
    FENCED = "fenced"
    """The host that held its lease is off."""
    MOVE_LOST = "move-lost"
    """The host that it moved to is off, and may have run it."""
    MOVE_ENDED = "move-ended"
    """It has arrived, or it stayed."""


E = Event

BEGUN = (S.RUNNING, S.PAUSED, S.STOPPING, S.MIGRATING)
"""States that a VM reaches on a migration's destination only after the commit."""
ALIVE = (S.STARTING, *BEGUN, S.UNKNOWN)
"""States in which a VM has, or may have, memory on its host."""
_DOWN = (S.DEFINED, S.STOPPED, S.CRASHED)

TRANSITIONS: dict[tuple[VmState, Event], VmState] = {
    (S.DEFINED, E.CREATED): S.STOPPED,
    (S.STOPPED, E.CREATED): S.STOPPED,
    # Not from those that have begun: a repeated step may find it running, and its repeated answer is no news.
    **{(state, E.START): S.STARTING for state in (*_DOWN, S.STARTING, S.UNKNOWN)},
    **{(state, E.START_UNANSWERED): S.UNKNOWN for state in S},
    # What its host has reported meanwhile is nearer to the truth than a refusal.
    **{(state, E.START_FAILED): S.STOPPED for state in (*_DOWN, S.STARTING)},
    **{(state, E.START_FAILED_AGAIN): S.CRASHED for state in (*_DOWN, S.STARTING)},
    **{(state, E.RELEASED): S.STOPPED for state in S},
    (S.UNKNOWN, E.NOT_HELD): S.STOPPED,
    **{(state, E.UNLISTED): S.UNKNOWN for state in BEGUN},
    **{(state, E.HOLDER_FOUND): S.UNKNOWN for state in S},
    **{(state, E.FENCED): S.CRASHED for state in ALIVE},
    **{(state, E.MOVE_LOST): S.CRASHED for state in S},
    (S.MIGRATING, E.MOVE_ENDED): S.RUNNING,
}

REPORTS = frozenset(S) - {S.DEFINED}
"""States that a report may say, whatever was known before. `defined` is a host's word that it has nothing to do with
the VM; whoever has, says so itself."""


def after(status: VmStatus, event: Event, reason: str, now: datetime, **facts: Any) -> VmStatus | None:
    """The status once that has been learned, with what else is known of the VM; None if it tells nothing new."""
    state = TRANSITIONS.get((status.state, event))
    if state is None:
        return None
    update: dict[str, Any] = {"state": state, "reason": reason}
    if state is not status.state:
        update["since"] = now
    if state not in BEGUN:
        # Known of a QEMU that its host reports, and of no other.
        update |= {"pid": None, "guest_agent": False}
    return status.model_copy(update=update | facts)


def believed(lease: Lease | None, report: VmReport) -> bool:
    """Whether a report speaks for the VM: it comes from the lease's holder, or proves a commit."""
    if lease is None or report.state not in REPORTS:
        return False
    return (report.epoch == lease.epoch and report.host == lease.host) or proves_commit(lease, report)


def proves_commit(lease: Lease, report: VmReport) -> bool:
    """Whether a report can only come from a destination that has committed the standing offer."""
    return report.epoch == lease.highest and report.host == lease.offered_to and report.state in BEGUN


def merged(status: VmStatus, report: VmReport) -> VmStatus:
    """The status with what a report says that is believed."""
    return status.model_copy(
        update={
            "state": report.state,
            "host": report.host,
            "epoch": report.epoch,
            "reason": report.reason,
            "since": report.since,
            "pid": report.pid,
            "accel": report.accel,
            "running_generation": report.generation,
            "guest_agent": report.guest_agent,
            "restarts": report.restarts,
            "conditions": [one for one in status.conditions if one.type != HOST_SILENT],
        }
    )
