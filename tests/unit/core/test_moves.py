"""Moves as a whole: the source's table, the destination's and the lease's, with whatever may die in between.

Agents, QEMUs, the link and the controller fail in any order, journals are lost, the database is restored from a backup,
and operators fence hosts (`hosts.py` and `controllers.py` have the parts). Two copies never run; what was decided stays
so; and once all has gone on that can, one copy runs, or none and its host or the fence is the reason.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serai.core import grants
from serai.core import lease as rules
from serai.core.migration import DestinationEvent, SourceEvent
from serai.schema.errors import StaleError
from serai.schema.ids import HostName
from serai.schema.lease import Claim
from serai.schema.vm import VmState

from .controllers import Controller
from .hosts import Host, Stream, Targets

NAMES = ("h1", "h2", "h3")
ENDS = ("source", "to")
ORDERS = (0, 2, 5, 8, 11, 14, 15)
"""Which of `Moves.steps` come first: the job's, agents that hear, those that arrive, QEMUs, who asks, the job's end,
introductions."""
MOST = 24
"""Steps that a move without a fault takes at the most."""
LONG = 300
"""More steps than any move has."""


class Moves(RuleBasedStateMachine):
    """A controller with its lease and one job at a time, and three hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.targets = Targets()
        self.hosts = {name: Host(name, self.targets) for name in NAMES}
        self.controller = Controller(self.hosts, self.targets)
        self.hosts["h1"].write(1, Claim.HELD)
        self.hosts["h1"].start(1)
        self.steps: list[Callable[[], bool]] = [
            self.controller.prepares,
            self.controller.begins,
            *(host.hear for host in self.hosts.values()),
            *(lambda host=host: host.up and host.arrive() for host in self.hosts.values()),
            *(lambda host=host: host.qemu is not None and host.qemu.step() for host in self.hosts.values()),
            *(lambda host=host: self.controller.asks(host) for host in self.hosts.values()),
            self.controller.concludes,
            *(lambda host=host: self.controller.introduces(host) for host in self.hosts.values()),
        ]

    def any_step(self, first: int = 0) -> bool:
        return any(step() for step in self.steps[first:] + self.steps[:first])

    def go(self, count: int, first: int) -> None:
        """Some steps, those from `first` on before the others."""
        for _ in range(count):
            self.any_step(first)
            self.check()

    # --- what goes wrong ---

    def end_of(self, end: str) -> Host:
        """Of the move, or of none: the VM's holder."""
        return self.hosts[getattr(self.controller.move, end, self.controller.lease.host)]

    def nothing(self, _: str) -> None:
        """Only the order changes."""

    def an_agent_dies(self, end: str) -> None:
        self.end_of(end).kill_agent()

    def agents_start(self, _: str) -> None:
        for host in self.hosts.values():
            if not host.up:
                host.start_agent()

    def an_agent_dies_and_starts(self, end: str) -> None:
        self.an_agent_dies(end)
        self.end_of(end).start_agent()

    def a_qemu_dies(self, end: str) -> None:
        if self.end_of(end).qemu is not None:
            self.end_of(end).kill_qemu()

    def a_host_dies(self, end: str) -> None:
        """Agent and QEMU at once."""
        self.an_agent_dies(end)
        self.a_qemu_dies(end)

    def the_link_is_cut(self, _: str) -> None:
        if self.controller.move is not None:
            self.controller.streams[self.controller.move].cut = True

    def somebody_cancels(self, _: str) -> None:
        source = self.end_of("source")
        if source.up:
            source.inbox.append(SourceEvent.CANCEL)

    def qemu_is_cancelled_by_another(self, _: str) -> None:
        """Before the switch: nobody else has a way to QEMU, and who has is asked to leave the switch alone."""
        qemu = self.end_of("source").qemu
        if qemu is not None and not qemu.continued:
            qemu.migrate_cancel()

    def the_controller_dies(self, _: str) -> None:
        """Its next life knows nobody, finds a job in mid-move, and gives it up unless that is too late."""
        self.controller.restarts()
        for host in self.hosts.values():
            self.controller.introduces(host)
        self.controller.gives_up_or_commits()

    def a_backup_is_made(self, _: str) -> None:
        self.controller.backup = self.controller.db

    def the_backup_is_restored(self, _: str) -> None:
        self.controller.restores()

    def a_journal_is_lost(self, end: str) -> None:
        self.end_of(end).lose_journal()

    def a_host_is_fenced(self, end: str) -> None:
        """It is off, as the operator says."""
        self.a_host_dies(end)
        self.controller.fence(self.end_of(end).name)
        self.controller.gives_up_or_commits()

    def a_host_out_of_reach_is_fenced(self, end: str) -> None:
        """It is not off, and what runs there goes on: only the targets keep it from writing."""
        host = self.end_of(end)
        self.controller.fence(host.name)
        self.controller.gives_up_or_commits()

    def patience_ends(self, _: str) -> None:
        """The destination waits no longer for the last state."""
        destination = self.end_of("to")
        if destination.up:
            destination.decide(DestinationEvent.TURN_DOWN)

    def an_old_message_comes(self, _: str) -> None:
        """A verdict asked for again, a report of a commit, an offer given up: late, and perhaps repeated."""
        for move in self.controller.offers:
            host = self.hosts[move.to]
            if host.up and move != self.controller.move:
                host.verdict(move.epoch, move.journal, turn_down=True)
            if host.claim(move.epoch) is Claim.COMMITTED:
                with contextlib.suppress(StaleError):
                    self.controller.save(grants.commit(self.controller.lease, move.epoch, HostName(move.to)))

    def an_old_command_comes(self, _: str) -> None:
        """The start of a move that was given up, late. Nobody listens at that port, and the last state fits into the
        buffers of its socket all the same."""
        for move in self.controller.offers:
            source = self.hosts[move.source]
            if move != self.controller.move and source.may_leave(move):
                source.leave(move, Stream())
                return

    def a_host_restarts_its_vm_alone(self, end: str) -> None:
        """By its policy and its own journal, with no controller in reach."""
        host = self.end_of(end)
        if host.up and host.may_restart() and host.record is not None:
            host.start(host.record.epoch)

    FAULTS = (
        nothing,
        an_agent_dies,
        agents_start,
        an_agent_dies_and_starts,
        a_qemu_dies,
        a_host_dies,
        the_link_is_cut,
        somebody_cancels,
        qemu_is_cancelled_by_another,
        the_controller_dies,
        a_backup_is_made,
        the_backup_is_restored,
        a_journal_is_lost,
        a_host_is_fenced,
        a_host_out_of_reach_is_fenced,
        patience_ends,
        an_old_message_comes,
        an_old_command_comes,
        a_host_restarts_its_vm_alone,
    )

    @rule(
        to=st.sampled_from(NAMES),
        course=st.lists(
            st.tuples(st.integers(0, 12), st.sampled_from(ORDERS), st.sampled_from(FAULTS), st.sampled_from(ENDS)),
            max_size=6,
        ),
    )
    def a_move(self, to: str, course: list[tuple[int, int, Callable[[Moves, str], None], str]]) -> None:
        """Some steps, in the usual order or from `first` on, then a fault, and so on; what is left comes later."""
        self.controller.offer(to)
        for steps, first, fault, end in course:
            self.go(steps, first)
            fault(self, end)
            self.check()

    @rule(to=st.sampled_from(NAMES))
    def a_vm_that_is_down_starts_anywhere(self, to: str) -> None:
        self.controller.starts(to)

    # --- what holds ---

    @invariant()
    def check(self) -> None:
        self.never_two_copies()
        self.a_copy_runs_under_a_claim()
        self.who_has_left_queues_no_frames()
        self.what_was_decided_stays()

    def never_two_copies(self) -> None:
        assert sum(host.runs for host in self.hosts.values()) <= 1

    def a_copy_runs_under_a_claim(self) -> None:
        for host in self.hosts.values():
            if host.runs and host.journal == 1:
                assert host.record is not None
                assert rules.may_run(host.claims) == host.record.epoch

    def who_has_left_queues_no_frames(self) -> None:
        """Of two QEMUs of one VM only the one that runs has its port open; one out of reach is not asked."""
        for host in self.hosts.values():
            reached = [other for other in self.hosts.values() if other.epoch > self.targets.refused]
            others = [other for other in reached if other is not host and other.qemu is not None]
            if host.runs and host.record is not None and host.record.incoming is None:
                assert not [other for other in others if other.port and not other.runs and other.source is not None]

    def what_was_decided_stays(self) -> None:
        for host in self.hosts.values():
            for epoch in {row.epoch for row in host.claims}:
                claims = [row.claim for row in host.claims if row.epoch == epoch]
                assert not {Claim.COMMITTED, Claim.ABANDONED} <= set(claims)
                assert Claim.COMMITTED not in claims[:-1] or claims[-1] is Claim.RELEASED

    @rule()
    def all_settles(self) -> None:
        """Agents start, hosts of an unknown journal are fenced by hand; then the VM runs, or can be started."""
        self.agents_start("")
        for _ in range(LONG):
            if not self.any_step() and not self.controller.gives_up_or_commits() and not self._somebody_fences():
                break
            self.check()
        else:
            raise AssertionError("it never comes to an end")
        lease = self.controller.lease
        assert self.controller.move is None
        assert not self.controller.db.restored
        assert not self.controller.db.fenced
        assert not grants.waits_for(lease, self.controller.heard())
        holder = self.hosts[lease.host]
        if holder.asking:
            self.controller.stops_by_force()
        assert [host.name for host in self.hosts.values() if host.record or host.qemu] in ([holder.name], [])
        if holder.runs:
            assert (holder.record, holder.port) != (None, False)
            assert rules.may_run(holder.claims) == lease.epoch
            assert not rules.is_over(lease)
        else:
            assert holder.qemu is None
            assert holder.record is None or (holder.record.state, bool(holder.record.reason)) == (VmState.CRASHED, True)
            self.controller.starts("h2")
            assert self.hosts["h2"].runs
            self.check()

    def _somebody_fences(self) -> bool:
        """An operator sees that a host is refused, and says that what it was is gone."""
        for host in self.hosts.values():
            known = (host.name, host.journal) in self.controller.db.journals
            if not known and host.name not in self.controller.db.fenced:
                self.controller.fence(host.name)
                return True
        return False

    def teardown(self) -> None:
        self.all_settles()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("fault", Moves.FAULTS)
def test_one_fault_after_any_step_of_a_move(fault: Callable[[Moves, str], None], end: str) -> None:
    """And some more steps in another order, before all settles."""
    for told, (first, steps) in itertools.product(range(MOST), ((0, 0), (2, 3), (5, 2), (8, 1), (8, 2), (8, 3))):
        moves = Moves()
        moves.controller.offer("h2")
        moves.go(told, ORDERS[0])
        fault(moves, end)
        moves.go(steps, first)
        moves.go(2, 2)  # who heard of it late acts on it
        moves.all_settles()
        moves.check()


def test_a_move_without_a_fault_arrives() -> None:
    moves = Moves()
    for to in ("h2", "h1", "h3"):
        moves.controller.offer(to)
        for _ in range(MOST):
            moves.go(1, ORDERS[0])
        assert (moves.controller.move, moves.controller.lease.host, moves.hosts[to].runs) == (None, to, True)


def test_a_database_from_before_a_move_starts_no_second_copy() -> None:
    """The holder by the database has given the VM up, and must not get it again while its new holder is silent."""
    moves = Moves()
    controller, hosts = moves.controller, moves.hosts
    controller.offer("h2")
    moves.go(MOST, ORDERS[0])
    assert hosts["h2"].runs
    hosts["h2"].kill_agent()
    controller.restores()
    controller.introduces(hosts["h1"])
    controller.introduces(hosts["h3"])
    assert controller.db.restored
    assert grants.waits_for(controller.lease, controller.heard()) == {"h2"}
    controller.starts("h1")
    assert not hosts["h1"].runs
    hosts["h2"].start_agent()
    controller.introduces(hosts["h2"])
    assert (controller.lease.host, controller.lease.epoch, controller.db.restored) == ("h2", 2, False)
    controller.starts("h1")
    assert [host.name for host in hosts.values() if host.runs] == ["h2"]


Moves.TestCase.settings = settings(max_examples=500, stateful_step_count=12, deadline=None)
TestMoves: Any = Moves.TestCase
