"""The VM's life on one host, as a transition table: nothing else changes a VM's state.

`TRANSITIONS[(state, event)]` is the next state; a pair that is not in it is refused. The host's VM agent feeds it with
what was asked and with what QEMU reports, and asks `after_end` what the restart policy wants when QEMU is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from serai.schema.errors import ConflictError
from serai.schema.vm import RestartPolicy, VmState

S = VmState


class VmEvent(StrEnum):
    START = "start"
    RUNS = "runs"
    START_FAILED = "start-failed"
    """It never ran, so it has not crashed."""
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    STOP = "stop"
    MIGRATE = "migrate"
    MIGRATE_ENDED = "migrate-ended"
    """The move failed or was cancelled before the commit point: the VM goes on here."""
    INCOMING = "incoming"
    ARRIVED = "arrived"
    FOUND_RUNNING = "found-running"
    FOUND_PAUSED = "found-paused"
    """What a restarted agent sees QEMU do: an earlier one may have died between an act and the record of it."""
    GUEST_OFF = "guest-off"
    STOPPED_BY_FORCE = "stopped-by-force"
    CRASHED = "crashed"
    IO_ERROR = "io-error"


E = VmEvent

_ALIVE = (S.STARTING, S.RUNNING, S.PAUSED, S.MIGRATING, S.STOPPING)

TRANSITIONS: dict[tuple[VmState, VmEvent], VmState] = {
    (S.DEFINED, E.START): S.STARTING,
    (S.STOPPED, E.START): S.STARTING,
    (S.CRASHED, E.START): S.STARTING,
    (S.STARTING, E.RUNS): S.RUNNING,
    (S.STARTING, E.START_FAILED): S.STOPPED,
    (S.STARTING, E.STOP): S.STOPPING,
    (S.RUNNING, E.PAUSE): S.PAUSED,
    (S.PAUSED, E.PAUSE): S.PAUSED,
    (S.PAUSED, E.RESUME): S.RUNNING,
    (S.RUNNING, E.RESUME): S.RUNNING,
    (S.RUNNING, E.IO_ERROR): S.PAUSED,
    (S.RUNNING, E.RESET): S.RUNNING,
    (S.PAUSED, E.RESET): S.PAUSED,
    (S.RUNNING, E.STOP): S.STOPPING,
    (S.PAUSED, E.STOP): S.STOPPING,
    (S.STOPPING, E.STOP): S.STOPPING,
    (S.STOPPED, E.STOP): S.STOPPED,
    (S.CRASHED, E.STOP): S.STOPPED,
    (S.RUNNING, E.MIGRATE): S.MIGRATING,
    (S.MIGRATING, E.MIGRATE_ENDED): S.RUNNING,
    (S.DEFINED, E.INCOMING): S.STARTING,
    (S.STARTING, E.ARRIVED): S.RUNNING,
    **{(state, E.FOUND_RUNNING): S.RUNNING for state in (S.STARTING, S.RUNNING, S.PAUSED, S.STOPPING)},
    **{(state, E.FOUND_PAUSED): S.PAUSED for state in (S.RUNNING, S.PAUSED, S.STOPPING)},
    **{(state, E.GUEST_OFF): S.STOPPED for state in _ALIVE},
    **{(state, E.STOPPED_BY_FORCE): S.STOPPED for state in _ALIVE},
    **{(state, E.CRASHED): S.CRASHED for state in _ALIVE},
}

_DOWN = (S.DEFINED, S.STOPPED, S.CRASHED)
_NO_WORD = "Its reason says why: serai vm show {name}. Wait for word of it, or end it: serai vm stop {name} --force."
_START_IT = "start it first: serai vm start {name}."

_REMEDY: dict[VmEvent, str] = {
    E.START: "It runs already, or is on its way; see: serai vm show {name}.",
    E.MIGRATE: "Only a running VM moves; wait for what is under way: serai vm show {name}.",
    E.PAUSE: "Only a running VM can be paused.",
    E.RESUME: "Only a paused VM can be resumed.",
    E.RESET: "Start it instead: serai vm start {name}.",
    E.STOP: "Wait for its move to end, or cancel that job first.",
}
_REMEDY_IN: dict[tuple[VmState, VmEvent], str] = {
    (S.PAUSED, E.START): "It only stands still; let it go on: serai vm resume {name}.",
    (S.PAUSED, E.MIGRATE): "Only a running VM moves; let it go on first: serai vm resume {name}.",
    **{(state, E.MIGRATE): f"Only a running VM moves; {_START_IT}" for state in _DOWN},
    **{(state, E.PAUSE): f"Only a running VM can be paused; {_START_IT}" for state in _DOWN},
    **{(S.UNKNOWN, event): _NO_WORD for event in (E.START, E.MIGRATE, E.PAUSE, E.RESUME, E.RESET, E.STOP)},
}
"""Where the state says more about what to do than the event alone."""


def follow(state: VmState, event: VmEvent, name: str) -> VmState:
    """The state after `event`. Raises ConflictError that names the VM and the remedy if the table has no such step."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        remedy = _REMEDY_IN.get((state, event)) or _REMEDY.get(event)
        raise ConflictError(
            f"VM {name} is {state}, and cannot {event}",
            field="state",
            value=state,
            remedy=remedy and remedy.format(name=name),
        ) from None


@dataclass(frozen=True)
class End:
    """How a QEMU process ended: `event` for the table, `reason` for people, `failure` for the restart policy."""

    event: VmEvent
    reason: str
    failure: bool


def classify_end(*, code: int | None, signal: int | None, shutdown: str | None, asked: bool, log_tail: str) -> End:
    """What an ended QEMU means.

    `shutdown` is the reason of the last SHUTDOWN event (`guest-shutdown`, `guest-panic`, `host-qmp-quit`, …) or none;
    `asked` says that Serai itself had asked for the end. A clean exit code without a SHUTDOWN event is no clean end.
    """
    if shutdown == "guest-panic":
        return End(E.CRASHED, "the guest's kernel panicked", failure=True)
    if shutdown in ("guest-shutdown", "guest-reset", "subsystem-reset"):
        return End(E.GUEST_OFF, "shut down as asked" if asked else "the guest powered itself off", failure=False)
    if asked:
        return End(E.STOPPED_BY_FORCE, "stopped by force", failure=False)
    tail = f": {log_tail.strip().splitlines()[-1]}" if log_tail.strip() else ""
    if signal is not None:
        return End(E.CRASHED, f"QEMU was killed by signal {signal}{tail}", failure=True)
    if code is None:
        # Not this process's child: an agent before this one started it.
        return End(E.CRASHED, f"QEMU ended without a word from the guest{tail}", failure=True)
    return End(E.CRASHED, f"QEMU ended with code {code} and no word from the guest{tail}", failure=True)


RESTART_DELAYS = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Seconds before the n-th restart in a row; the last repeats. A VM that has run for `SETTLED` seconds starts over."""
SETTLED = 300.0


def after_end(policy: RestartPolicy, end: End, *, asked: bool, restarts: int) -> float | None:
    """Seconds to wait before the VM is started again, or none if it stays down. An end that was asked for stays."""
    if asked or policy is RestartPolicy.NEVER:
        return None
    if policy is RestartPolicy.ON_FAILURE and not end.failure:
        return None
    return RESTART_DELAYS[min(restarts, len(RESTART_DELAYS) - 1)]
