"""Moves as a whole: the source's table, the destination's and the lease's, with whatever may die in between.

Agents, QEMUs, the link and the controller fail in any order (`hosts.py` has the parts). Never do two copies run; what
is committed stays so; and once all has gone on that can, one copy runs, or none and its host has a reason for it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serai.core import lease as rules
from serai.core.migration import DestinationEvent, DestinationPhase, SourceEvent
from serai.schema.errors import ConflictError, StaleError
from serai.schema.lease import Claim
from serai.schema.vm import VmState

from .hosts import VM, Host, Move, Stream

NAMES = ("h1", "h2", "h3")
ENDS = ("source", "to")
ORDERS = (0, 2, 5, 8, 11, 14)
"""Which of `Moves.steps` come first: the job's, agents that hear, those that arrive, QEMUs, who asks, the job's end."""
MOST = 24
"""Steps that a move without a fault takes at the most."""
LONG = 200
"""More steps than any move has."""


class Moves(RuleBasedStateMachine):
    """A controller with its lease and one job at a time, and three hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts = {name: Host(name) for name in NAMES}
        self.lease = rules.first(VM, "h1")
        self.move: Move | None = None
        self.stream = Stream()
        self.begun = False
        self.offers: list[Move] = []
        self.hosts["h1"].write(1, Claim.HELD)
        self.hosts["h1"].start(1)
        self.steps: list[Callable[[], bool]] = [
            self.prepares,
            self.begins,
            *(host.hear for host in self.hosts.values()),
            *(lambda host=host: host.up and host.arrive() for host in self.hosts.values()),
            *(lambda host=host: host.qemu is not None and host.qemu.step() for host in self.hosts.values()),
            *(lambda host=host: self.asks(host) for host in self.hosts.values()),
            self.concludes,
        ]

    # --- the job, and what goes on by itself: each says whether there was anything to do ---

    def offer(self, to: str) -> None:
        holder = self.hosts[self.lease.host]
        if holder.record is None or holder.record.state is not VmState.RUNNING:
            return
        try:
            self.lease = rules.offer(self.lease, to, f"offer{len(self.offers)}")
        except ConflictError:
            assert to == self.lease.host
            return
        self.move, self.stream, self.begun = Move(self.lease.highest, self.lease.host, to), Stream(), False
        self.offers.append(self.move)

    def prepares(self) -> bool:
        move = self.move
        if move is None or self.begun or not self.hosts[move.to].up or self.hosts[move.to].record is not None:
            return False
        try:
            self.hosts[move.to].prepare(move, self.stream)
        except StaleError:
            assert self.hosts[move.to].claim(move.epoch) is Claim.ABANDONED
            return False
        return True

    def begins(self) -> bool:
        move = self.move
        if move is None or self.begun:
            return False
        source, destination = self.hosts[move.source], self.hosts[move.to]
        ready = source.up and source.qemu is not None and destination.destination is DestinationPhase.PREPARED
        if not ready or source.record is None or source.record.state is not VmState.RUNNING:
            return False
        source.leave(move, self.stream)
        self.begun = True
        return True

    def asks(self, source: Host) -> bool:
        """A source that has sent all asks the destination's journal, for as long as it takes."""
        if not source.asking or source.record is None or source.record.outgoing is None:
            return False
        move = source.record.outgoing
        if not source.up or not self.hosts[move.to].up:
            return False
        claim = self.hosts[move.to].verdict(move.epoch, turn_down=False)
        if claim is Claim.OFFERED:
            return False
        source.asking = False
        source.inbox.append(SourceEvent.COMMITTED if claim is Claim.COMMITTED else SourceEvent.ABANDONED)
        return True

    def concludes(self) -> bool:
        """The source is through with it, one way or the other: so is the job."""
        move = self.move
        if move is None or not self.begun or not self.hosts[move.source].up:
            return False
        record = self.hosts[move.source].record
        if record is not None and record.outgoing is not None:
            return False
        return self.gives_up_or_commits(move)

    def gives_up_or_commits(self, move: Move) -> bool:
        if not self.hosts[move.to].up:
            return False
        if self.hosts[move.to].verdict(move.epoch, turn_down=True) is Claim.COMMITTED:
            self.lease = rules.commit(self.lease, move.epoch, move.to)
            if self.hosts[move.source].up:
                self.hosts[move.source].release(move.epoch - 1)
        else:
            self.lease = rules.withdraw(self.lease, self.lease.offer_id or "")
        self.move = None
        return True

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
        return self.hosts[getattr(self.move, end, self.lease.host)]

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

    def the_link_is_cut(self, _: str) -> None:
        self.stream.cut = True

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
        """Its next life finds a job in mid-move, and gives it up unless that is too late."""
        if self.move is not None:
            self.gives_up_or_commits(self.move)

    def patience_ends(self, _: str) -> None:
        """The destination waits no longer for the last state."""
        destination = self.end_of("to")
        if destination.up:
            destination.decide(DestinationEvent.TURN_DOWN)

    def an_old_message_comes(self, _: str) -> None:
        """A verdict asked for again, a report of a commit, an offer given up: late, and perhaps repeated."""
        for move in self.offers:
            host = self.hosts[move.to]
            if host.up and move != self.move:
                host.verdict(move.epoch, turn_down=True)
            if host.claim(move.epoch) is Claim.COMMITTED:
                with contextlib.suppress(StaleError):
                    self.lease = rules.commit(self.lease, move.epoch, move.to)

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
        the_link_is_cut,
        somebody_cancels,
        qemu_is_cancelled_by_another,
        the_controller_dies,
        patience_ends,
        an_old_message_comes,
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
        if self.move is None:
            self.offer(to)
        for steps, first, fault, end in course:
            self.go(steps, first)
            fault(self, end)
            self.check()

    @precondition(lambda self: self.move is None)
    @rule(to=st.sampled_from(NAMES))
    def a_vm_that_is_down_starts_anywhere(self, to: str) -> None:
        holder, host = self.hosts[self.lease.host], self.hosts[to]
        if not holder.up or not host.up or holder.record is None or holder.record.state is not VmState.CRASHED:
            return
        old = self.lease
        holder.release(old.highest)
        if host.record is not None:
            return  # what an earlier job left there is cleared first
        self.lease = rules.advance(old, to)
        assert self.lease.epoch > old.highest
        host.write(self.lease.epoch, Claim.HELD)
        host.start(self.lease.epoch)

    # --- what holds ---

    @invariant()
    def check(self) -> None:
        self.never_two_copies()
        self.a_copy_runs_under_a_claim()
        self.who_has_left_queues_no_frames()
        self.what_was_decided_stays()
        self.the_controllers_epoch_is_somebodys_claim()

    def never_two_copies(self) -> None:
        assert sum(host.runs for host in self.hosts.values()) <= 1

    def a_copy_runs_under_a_claim(self) -> None:
        for host in self.hosts.values():
            if host.runs:
                assert host.record is not None
                assert rules.may_run(host.claims) == host.record.epoch

    def who_has_left_queues_no_frames(self) -> None:
        """Of two QEMUs of one VM only the one that runs has its port open."""
        for host in self.hosts.values():
            others = [other for other in self.hosts.values() if other is not host and other.qemu is not None]
            if host.runs and host.record is not None and host.record.incoming is None:
                assert not [other for other in others if other.port and not other.runs and other.source is not None]

    def what_was_decided_stays(self) -> None:
        for host in self.hosts.values():
            for epoch in {row.epoch for row in host.claims}:
                claims = [row.claim for row in host.claims if row.epoch == epoch]
                assert not {Claim.COMMITTED, Claim.ABANDONED} <= set(claims)
                assert Claim.COMMITTED not in claims[:-1] or claims[-1] is Claim.RELEASED

    def the_controllers_epoch_is_somebodys_claim(self) -> None:
        claim = self.hosts[self.lease.host].claim(self.lease.epoch)
        assert claim in (Claim.HELD, Claim.COMMITTED, Claim.RELEASED)

    @precondition(lambda self: self.move is None)
    @rule()
    def all_settles(self) -> None:
        for host in self.hosts.values():
            if not host.up:
                host.start_agent()
        for _ in range(LONG):
            if not self.any_step() and (self.move is None or not self.gives_up_or_commits(self.move)):
                break
            self.check()
        else:
            raise AssertionError("it never comes to an end")
        assert self.move is None
        holder = self.hosts[self.lease.host]
        assert [host.name for host in self.hosts.values() if host.record or host.qemu] in ([holder.name], [])
        if holder.record is None:
            assert holder.claim(self.lease.epoch) is Claim.RELEASED  # a start elsewhere was given up
            return
        assert (holder.record.outgoing, holder.record.incoming) == (None, None)
        assert rules.may_run(holder.claims) == holder.record.epoch == self.lease.epoch
        if holder.runs:
            assert holder.record.state is VmState.RUNNING
            assert holder.port
        else:
            assert holder.qemu is None
            assert holder.record.state is VmState.CRASHED
            assert holder.record.reason

    def teardown(self) -> None:
        self.all_settles()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("fault", Moves.FAULTS)
def test_one_fault_after_any_step_of_a_move(fault: Callable[[Moves, str], None], end: str) -> None:
    """And some more steps in another order, before all settles."""
    for told, (first, steps) in itertools.product(range(MOST), ((0, 0), (2, 3), (5, 2), (8, 1), (8, 2), (8, 3))):
        moves = Moves()
        moves.offer("h2")
        moves.go(told, ORDERS[0])
        fault(moves, end)
        moves.go(steps, first)
        moves.go(2, 2)  # who heard of it late acts on it
        moves.all_settles()
        moves.check()


def test_a_move_without_a_fault_arrives() -> None:
    moves = Moves()
    for to in ("h2", "h1", "h3"):
        moves.offer(to)
        for _ in range(MOST):
            moves.go(1, ORDERS[0])
        assert (moves.move, moves.lease.host, moves.hosts[to].runs) == (None, to, True)


Moves.TestCase.settings = settings(max_examples=300, stateful_step_count=12, deadline=None)
TestMoves: Any = Moves.TestCase
