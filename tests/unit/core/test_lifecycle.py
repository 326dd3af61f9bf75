"""The lifecycle table, ends of QEMU, and the restart policy."""

from __future__ import annotations

import itertools

import pytest

from serai.core.lifecycle import RESTART_DELAYS, TRANSITIONS, End, VmEvent, after_end, classify_end, follow
from serai.schema.errors import ConflictError
from serai.schema.vm import RestartPolicy, VmState


@pytest.mark.parametrize(("state", "event"), list(itertools.product(VmState, VmEvent)))
def test_every_pair_leads_on_or_is_refused(state: VmState, event: VmEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert follow(state, event) in VmState
        return
    with pytest.raises(ConflictError) as caught:
        follow(state, event)
    assert caught.value.info.value == state


def test_every_state_but_unknown_can_be_left_and_reached() -> None:
    states = set(VmState) - {VmState.UNKNOWN}  # the controller's word for silence; no host is ever in it
    assert {state for state, _ in TRANSITIONS} == states
    assert set(TRANSITIONS.values()) == states


def test_a_vm_on_the_move_can_be_neither_stopped_nor_paused_nor_moved() -> None:
    for event in (VmEvent.STOP, VmEvent.PAUSE, VmEvent.RESET, VmEvent.MIGRATE, VmEvent.START):
        with pytest.raises(ConflictError) as caught:
            follow(VmState.MIGRATING, event)
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
