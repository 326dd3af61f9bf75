"""A VM's recorded state: the journal first, one setter by the table, reports that an older one never overtakes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.host.ground import FACTS, VM, make_launch

from serai.core.lifecycle import VmEvent
from serai.host.identity import HostIdentity
from serai.host.journal import Journal
from serai.host.store import HostStore, VmRecord
from serai.host.vm.state import RecordedState
from serai.lib.clock import ManualClock
from serai.schema.errors import ConflictError
from serai.schema.ids import HostName
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
        identity = HostIdentity(HostName("h1"), self.store, FACTS)
        self.state = RecordedState(identity, self.store, self.clock, self.reports.append, RECORD)


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


def test_reports_are_ordered_whatever_the_clock_says(kept: Kept) -> None:
    """The clock may be set back while an agent runs, or between two."""
    said = [kept.state.current_report()]
    kept.clock.set_back(timedelta(days=1))
    said.append(kept.state.current_report())
    later = RecordedState(HostIdentity(HostName("h1"), kept.store, FACTS), kept.store, kept.clock, said.append, RECORD)
    said.append(later.current_report())
    order = [(report.starts, report.sequence) for report in said]
    assert order == sorted(set(order))
    assert [report.starts for report in said] == [1, 1, 2]


def test_a_forgotten_vm_does_not_come_back(kept: Kept) -> None:
    kept.state.follow(VmEvent.RUNS)
    kept.state.forget()
    kept.state.follow(VmEvent.CRASHED, "late")
    assert kept.store.vm(VM) is None
