"""The lifecycle table against a little model of a machine; ends of QEMU, and the restart policy."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serai.core.lifecycle import RESTART_DELAYS, TRANSITIONS, End, VmEvent, after_end, classify_end, follow
from serai.schema.errors import ConflictError
from serai.schema.vm import RestartPolicy, VmState

S, E = VmState, VmEvent

USERS: dict[VmEvent, dict[VmState, VmState]] = {
    E.START: {S.DEFINED: S.STARTING, S.STOPPED: S.STARTING, S.CRASHED: S.STARTING},
    E.PAUSE: {S.RUNNING: S.PAUSED, S.PAUSED: S.PAUSED},
    E.RESUME: {S.PAUSED: S.RUNNING, S.RUNNING: S.RUNNING},
    E.RESET: {S.RUNNING: S.RUNNING, S.PAUSED: S.PAUSED},
    E.STOP: {
        S.STARTING: S.STOPPING,
        S.RUNNING: S.STOPPING,
        S.PAUSED: S.STOPPING,
        S.STOPPING: S.STOPPING,
        S.STOPPED: S.STOPPED,
        S.CRASHED: S.STOPPED,
    },
    E.MIGRATE: {S.RUNNING: S.MIGRATING},
}
"""What people ask for, and what it makes of a VM; in any other state it is refused, with the remedy."""


@pytest.mark.parametrize(("event", "state"), list(itertools.product(USERS, VmState)))
def test_what_is_asked_for(event: VmEvent, state: VmState) -> None:
    wanted = USERS[event].get(state)
    if wanted is not None:
        assert follow(state, event, "web1") is wanted
        return
    with pytest.raises(ConflictError) as caught:
        follow(state, event, "web1")
    assert (caught.value.info.field, caught.value.info.value) == ("state", state)
    assert caught.value.info.remedy


@pytest.mark.parametrize(
    ("state", "event", "words"),
    [
        (VmState.RUNNING, VmEvent.START, "serai vm show web1"),
        (VmState.PAUSED, VmEvent.START, "serai vm resume web1"),
        (VmState.PAUSED, VmEvent.MIGRATE, "serai vm resume web1"),
        (VmState.STOPPED, VmEvent.MIGRATE, "serai vm start web1"),
    ],
)
def test_a_refusal_names_the_vm_and_what_fits_its_state(state: VmState, event: VmEvent, words: str) -> None:
    with pytest.raises(ConflictError, match=f"VM web1 is {state}, and cannot {event}") as caught:
        follow(state, event, "web1")
    assert words in str(caught.value.info.remedy)


class Life(RuleBasedStateMachine):
    """A machine as its host sees it: whether a QEMU is there, whether its vCPUs run, and how its last one ended.

    The rules change these facts and tell the table. `expected` says by the facts alone which state that is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = S.DEFINED
        self.process = False
        self.begun = False
        """What starts it, or receives it, has not said yet that it runs."""
        self.arriving = False
        self.vcpus = False
        self.stopping = False
        self.moving = False
        self.last_end: VmState | None = None

    @property
    def expected(self) -> VmState:
        if self.begun:
            return S.STARTING
        if not self.process:
            return self.last_end or S.DEFINED
        if self.stopping:
            return S.STOPPING
        if self.moving:
            return S.MIGRATING
        return S.RUNNING if self.vcpus else S.PAUSED

    def tell(self, event: VmEvent) -> None:
        self.state = follow(self.state, event, "web1")

    @initialize(arrives=st.booleans())
    def begin(self, arrives: bool) -> None:
        """A VM comes to a host to be started, or by a move."""
        self.begun = self.arriving = self.process = arrives
        if arrives:
            self.tell(E.INCOMING)

    @invariant()
    def it_is_what_the_facts_say(self) -> None:
        assert self.state is self.expected

    @precondition(lambda self: not self.process and not self.begun)
    @rule(outcome=st.sampled_from(["it runs", "it fails", "QEMU dies", "the agent dies"]))
    def start(self, outcome: str) -> None:
        self.tell(E.START)
        self.begun = True
        self.it_is_what_the_facts_say()
        if outcome == "the agent dies":
            self.process = True  # its vCPUs wait for the first `cont`, or have had it
            return
        self.begun = False
        if outcome == "it runs":
            self.process = self.vcpus = True
            self.tell(E.RUNS)
        else:
            self.last_end = S.STOPPED if outcome == "it fails" else S.CRASHED
            self.tell(E.START_FAILED if outcome == "it fails" else E.CRASHED)

    @precondition(lambda self: self.arriving)
    @rule()
    def commit(self) -> None:
        """The move's other ends leave no VM here."""
        self.begun = self.arriving = False
        self.vcpus = True
        self.tell(E.ARRIVED)

    @rule(event=st.sampled_from([E.PAUSE, E.RESUME, E.RESET, E.MIGRATE, E.START]))
    def ask(self, event: VmEvent) -> None:
        """A user asks at any time. What the machine cannot do is refused, and changes nothing."""
        settled = self.process and not (self.begun or self.stopping or self.moving)
        possible = {
            E.PAUSE: settled,
            E.RESUME: settled,
            E.RESET: settled,
            E.MIGRATE: settled and self.vcpus,
            E.START: False,  # `start` does what is possible
        }
        if event is E.START and not self.process and not self.begun:
            return
        if not possible[event]:
            with pytest.raises(ConflictError):
                follow(self.state, event, "web1")
            return
        self.vcpus = {E.PAUSE: False, E.RESUME: True}.get(event, self.vcpus)
        self.moving = event is E.MIGRATE
        self.tell(event)

    @precondition(lambda self: self.state is S.RUNNING)
    @rule()
    def move(self) -> None:
        self.ask(E.MIGRATE)

    @precondition(lambda self: not self.arriving)
    @rule()
    def stop(self) -> None:
        """Of one that is down already: the crash is known, it is to stay down."""
        if self.moving:
            with pytest.raises(ConflictError):
                follow(self.state, E.STOP, "web1")
        elif self.process:
            self.stopping, self.begun = True, False
            self.tell(E.STOP)
        elif self.last_end is not None:
            self.last_end = S.STOPPED
            self.tell(E.STOP)

    @precondition(lambda self: self.moving)
    @rule(paused=st.booleans())
    def stay(self, paused: bool) -> None:
        """The move ended before its commit; a disk's error on the way is found when it is to go on."""
        self.moving = False
        self.tell(E.MIGRATE_ENDED)
        self.it_is_what_the_facts_say()
        if paused:
            self.io_error()

    @precondition(lambda self: self.vcpus and not (self.begun or self.stopping or self.moving))
    @rule()
    def io_error(self) -> None:
        self.vcpus = False
        self.tell(E.IO_ERROR)

    @precondition(lambda self: self.process and not self.arriving)
    @rule(how=st.sampled_from([E.GUEST_OFF, E.STOPPED_BY_FORCE, E.CRASHED]))
    def end(self, how: VmEvent) -> None:
        """However QEMU ends, whatever it was at. (While it arrives, its end turns the offer down.)"""
        self.process = self.begun = self.vcpus = self.stopping = self.moving = False
        self.last_end = S.CRASHED if how is E.CRASHED else S.STOPPED
        self.tell(how)

    @precondition(lambda self: self.process and not self.arriving and not self.moving)
    @rule(changed=st.booleans())
    def another_agent_looks(self, changed: bool) -> None:
        """The one before it may have died between an act and its record. A shutdown is asked for anew, if at all."""
        self.vcpus = self.begun or self.vcpus is not changed  # a start is carried to its end
        self.begun = self.stopping = False
        self.tell(E.FOUND_RUNNING if self.vcpus else E.FOUND_PAUSED)


Life.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestLife: Any = Life.TestCase


@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING, S.PAUSED, S.MIGRATING, S.STOPPING])
def test_an_end_is_told_apart_whatever_the_vm_was_at(state: VmState) -> None:
    ends = {event: follow(state, event, "web1") for event in (E.GUEST_OFF, E.STOPPED_BY_FORCE, E.CRASHED)}
    assert ends == {E.GUEST_OFF: S.STOPPED, E.STOPPED_BY_FORCE: S.STOPPED, E.CRASHED: S.CRASHED}


def test_a_host_is_never_told_a_state_that_is_the_controllers_word_for_silence() -> None:
    assert S.UNKNOWN not in {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values())


def test_a_vm_on_the_move_can_be_neither_stopped_nor_paused_nor_moved() -> None:
    for event in (VmEvent.STOP, VmEvent.PAUSE, VmEvent.RESET, VmEvent.MIGRATE, VmEvent.START):
        with pytest.raises(ConflictError) as caught:
            follow(VmState.MIGRATING, event, "web1")
        assert caught.value.info.remedy


@pytest.mark.parametrize(
    ("code", "signal", "shutdown", "asked", "event", "failure"),
    [
        (0, None, "guest-shutdown", False, VmEvent.GUEST_OFF, False),
        (0, None, "guest-shutdown", True, VmEvent.GUEST_OFF, False),
        (0, None, "guest-panic", False, VmEvent.CRASHED, True),
        (None, 9, None, False, VmEvent.CRASHED, True),
        (1, None, None, False, VmEvent.CRASHED, True),
        (0, None, None, False, VmEvent.CRASHED, True),
        (0, None, "host-qmp-quit", True, VmEvent.STOPPED_BY_FORCE, False),
    ],
)
def test_what_an_end_means(
    code: int | None, signal: int | None, shutdown: str | None, asked: bool, event: VmEvent, failure: bool
) -> None:
    end = classify_end(code=code, signal=signal, shutdown=shutdown, asked=asked, log_tail="")
    assert (end.event, end.failure) == (event, failure)
    assert end.reason


def test_the_reason_has_qemus_last_words() -> None:
    end = classify_end(code=1, signal=None, shutdown=None, asked=False, log_tail="first\nno such drive\n")
    assert end.reason.endswith("no such drive")


def test_an_end_whose_code_nobody_could_read_names_none() -> None:
    """As of a QEMU that an earlier agent had started."""
    end = classify_end(code=None, signal=None, shutdown=None, asked=False, log_tail="")
    assert (end.event, end.reason) == (VmEvent.CRASHED, "QEMU ended without a word from the guest")


FAILED = End(VmEvent.CRASHED, "", failure=True)
CLEAN = End(VmEvent.GUEST_OFF, "", failure=False)


def test_the_restart_policy() -> None:
    assert after_end(RestartPolicy.NEVER, FAILED, asked=False, restarts=0) is None
    assert after_end(RestartPolicy.ON_FAILURE, CLEAN, asked=False, restarts=0) is None
    assert after_end(RestartPolicy.ON_FAILURE, FAILED, asked=False, restarts=0) == 0.0
    assert after_end(RestartPolicy.ALWAYS, CLEAN, asked=False, restarts=1) == RESTART_DELAYS[1]
    assert after_end(RestartPolicy.ALWAYS, FAILED, asked=True, restarts=0) is None
    assert after_end(RestartPolicy.ALWAYS, FAILED, asked=False, restarts=99) == RESTART_DELAYS[-1]
