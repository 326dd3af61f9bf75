"""Taking an uplink: a bridge goes on the machine's link, its addresses and routes with it, and connections survive.

The change is one `ip -batch`, computed beforehand with its inverse by `plan_take`. Both are in a file before anything
changes, and so is a watchdog: a process of its own, in a session of its own, nobody's child. It outlives the agent, the
SSH session and the kill -9 of either, and applies the inverse when the time is over, unless the file says `confirmed`
by then. Every process that changes the file holds its lock, so that a take is either confirmed or undone, never both.
A confirmed take is applied again after a reboot, when the agent starts.

Only what `ip` shows is moved: a DHCP client that goes on running on the uplink itself, rules of a firewall that name
the uplink, and routing rules (`ip rule`) must be changed to name the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from serai.drivers.network.uplink_plan import Uplink, parse_uplink, plan_take
from serai.lib import atomicfile
from serai.lib.ids import new_secret
from serai.lib.process import detach, run_sync, spawn
from serai.schema.commands.uplink import UplinkTaken
from serai.schema.errors import ConflictError, HostError, NotFoundError, SeraiError
from serai.schema.resource import Frozen

FOLDER = "uplinks"
WATCH_PERIOD = 0.2
"""Seconds between two looks of the watchdog at the file: it costs nothing, and a confirmed take needs none for long."""
UNDO_ATTEMPTS = 5

log = logging.getLogger(__name__)


class Phase(StrEnum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    UNDONE = "undone"


class Take(Frozen):
    """One take, as its file has it. `deadline` is wall time in seconds since the epoch; `do`, `undo`: `ip -batch`.

    `enter` is the argv prefix into the namespace of the link. `problem` says what an undo could not give back.
    """

    token: str
    uplink: str
    bridge: str
    phase: Phase
    deadline: float
    before: Uplink
    do: list[str]
    undo: list[str]
    enter: list[str]
    problem: str = ""


def read_uplink(name: str, enter: Sequence[str] = ()) -> Uplink:
    """What the link is and has now. Blocking. Raises NotFoundError, and what `parse_uplink` raises."""
    shown = _ip(enter, "-json", "-details", "address", "show", "dev", name)
    if shown is None:
        raise NotFoundError(
            "this host has no such link", field="uplink", value=name, remedy="See 'ip link' on the host for its links."
        )
    (link,) = json.loads(shown)
    routes = json.loads(_ip(enter, "-json", "route", "show", "table", "all") or b"[]")
    routes6 = json.loads(_ip(enter, "-json", "-6", "route", "show", "table", "all") or b"[]")
    return parse_uplink(link, routes, routes6)


def _ip(enter: Sequence[str], *words: str) -> bytes | None:
    done = run_sync([*enter, "ip", *words], check=False)
    return done.stdout if done.returncode == 0 else None


def _there(enter: Sequence[str], link: str) -> bool:
    return _ip(enter, "link", "show", "dev", link) is not None


class UplinkTaker:
    """Takes uplinks of this host. `state` is the host's state folder; `enter` an argv prefix into its namespace."""

    def __init__(self, state: Path, enter: Sequence[str] = ()) -> None:
        self._folder = state / FOLDER
        self._enter = list(enter)
        self._lock = asyncio.Lock()

    def takes(self) -> list[Take]:
        """The newest take of each uplink, by time."""
        found = [Take.model_validate_json(file.read_bytes()) for file in self._folder.glob("*.json")]
        return sorted(found, key=lambda take: take.deadline)

    def current(self) -> Take | None:
        return next(reversed(self.takes()), None)

    async def start(self) -> None:
        """After a reboot: take confirmed uplinks again. Others are as they were; one still pending is watched again.

        A take that fails is logged: the agent and its VMs must run all the same.
        """
        async with self._lock:
            for take in self.takes():
                try:
                    await self._resume(take)
                except SeraiError as error:
                    log.error("the uplink %s could not be taken again: %s", take.uplink, error)

    async def _resume(self, take: Take) -> None:
        present = await asyncio.to_thread(_there, self._enter, take.bridge)
        if take.phase is Phase.PENDING:
            if present:
                await self._watch(take)
            else:
                _write(self._file(take), take.model_copy(update={"phase": Phase.UNDONE}))
        elif take.phase is Phase.CONFIRMED and not present:
            found = await asyncio.to_thread(read_uplink, take.uplink, self._enter)
            if take.before.addresses and not found.addresses:
                log.warning(
                    "the uplink %s has no address yet: configure its address source for the bridge", take.uplink
                )
            do, undo = plan_take(found, take.bridge)
            await asyncio.to_thread(_apply, take.model_copy(update={"before": found, "do": do, "undo": undo}))

    async def take(self, uplink: str, bridge: str, within: float) -> UplinkTaken:
        """Put `bridge` on `uplink`, undone after `within` seconds unless confirmed.

        Raises NotFoundError, ConflictError, InvalidError, HostError; then nothing is changed. Cancelled in the midst of
        the change, it is undone like one that was not confirmed.
        """
        async with self._lock:
            take = await asyncio.to_thread(self._prepare, uplink, bridge, within)
            # The watchdog is there before the change: there is no moment in which nobody would undo it.
            await self._watch(take)
            await asyncio.to_thread(_change, self._file(take), take)
            deadline = datetime.now(UTC) + timedelta(seconds=take.deadline - time.time())
            return UplinkTaken(token=take.token, deadline=deadline)

    def _prepare(self, uplink: str, bridge: str, within: float) -> Take:
        for other in self.takes():
            if other.phase is Phase.PENDING and other.deadline > time.time():
                raise ConflictError(
                    f"{other.uplink} was taken and is not confirmed yet",
                    field="uplink",
                    value=uplink,
                    remedy="Confirm it, or wait until it is undone.",
                )
        found = read_uplink(uplink, self._enter)
        if _there(self._enter, bridge):
            raise ConflictError("there is such a link already", field="bridge", value=bridge, remedy="Choose another.")
        do, undo = plan_take(found, bridge)
        take = Take(
            token=new_secret(),
            uplink=uplink,
            bridge=bridge,
            phase=Phase.PENDING,
            deadline=time.time() + within,
            before=found,
            do=do,
            undo=undo,
            enter=self._enter,
        )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        _write(self._file(take), take)
        return take

    async def _watch(self, take: Take) -> None:
        """Start a watchdog; when this returns without an error, it is at work."""
        file = self._file(take)
        watchdog = await spawn([sys.executable, "-m", "serai.drivers.network.uplink", str(file), take.token])
        # It goes on in a process of its own, and the one we started says by its end whether that is so.
        if await watchdog.wait() != 0:
            _write(file, take.model_copy(update={"phase": Phase.UNDONE}))
            raise HostError("the uplink is not taken: the process that would undo it did not start")

    async def confirm(self, token: str) -> None:
        async with self._lock:
            take = next((take for take in reversed(self.takes()) if not token or take.token == token), None)
            if take is None:
                raise NotFoundError(
                    "no uplink was taken under this token" if token else "no uplink was taken that could be confirmed",
                    field="uplink",
                    value="none",
                    remedy="Take one first: serai host network take UPLINK.",
                )
            await asyncio.to_thread(_confirm, self._file(take), take.token)

    def _file(self, take: Take) -> Path:
        return self._folder / f"{take.uplink}.json"


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[Take]:
    """The take as the file has it, and nobody else changes it meanwhile."""
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Take.model_validate_json(file.read_bytes())


def _write(file: Path, take: Take) -> None:
    atomicfile.write_text(file, take.model_dump_json(), mode=0o600)


def _confirm(file: Path, token: str) -> None:
    with _locked(file) as take:
        if take.token != token or take.phase is Phase.UNDONE:
            raise ConflictError(
                "it was not confirmed in time and is undone" + (f"; {take.problem}" if take.problem else ""),
                field="uplink",
                value=take.uplink,
                remedy="Take it again, and confirm sooner or with a longer time.",
            )
        if take.phase is Phase.PENDING:
            _write(file, take.model_copy(update={"phase": Phase.CONFIRMED}))


def _batch(take: Take, lines: list[str], *options: str) -> str:
    """Run the lines in one `ip`; what it said, if any failed."""
    argv = [*take.enter, "ip", *options, "-batch", "-"]
    done = run_sync(argv, input="\n".join(lines).encode() + b"\n", check=False)
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""


def _apply(take: Take) -> None:
    error = _batch(take, take.do)
    if error:
        problem = _restore(take)
        state = f"and could not be given back whole: {problem}" if problem else "and is as it was"
        raise HostError(f"the uplink {take.uplink} could not be taken, {state}: {error}")


def _change(file: Path, take: Take) -> None:
    with _locked(file) as present:
        if present.token != take.token or present.phase is not Phase.PENDING:
            raise HostError(f"the uplink {take.uplink} is not taken: its time was over before the change began")
        try:
            _apply(take)
        except SeraiError as error:
            _write(file, take.model_copy(update={"phase": Phase.UNDONE, "problem": error.info.message}))
            raise


def _restore(take: Take) -> str:
    """Give the link back what it had; what could not be given back, in words. Whatever fails, the rest is done."""
    problem = ""
    for attempt in range(UNDO_ATTEMPTS):
        time.sleep(0.2 * attempt)
        said = _batch(take, take.undo, "-force")
        try:
            missing = read_uplink(take.uplink, take.enter).lacks(take.before)
        except SeraiError as error:
            problem = str(error)
            continue
        if not missing:
            return ""
        problem = f"{', '.join(missing)} missing ({said})"
    return problem


def undo(file: Path, token: str) -> None:
    """Undo this take, unless it was confirmed or undone before."""
    with _locked(file) as take:
        if take.token == token and take.phase is Phase.PENDING:
            problem = _restore(take)
            _write(file, take.model_copy(update={"phase": Phase.UNDONE, "problem": problem}))


def watch(file: Path, token: str) -> None:
    """The watchdog: wait for the deadline of this take; undo it unless it was confirmed, or another followed."""
    take = Take.model_validate_json(file.read_bytes())
    # From here on by a clock that nobody sets, and that goes on while the machine sleeps.
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + take.deadline - time.time()
    while (left := until - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0:
        take = Take.model_validate_json(file.read_bytes())
        if take.token != token or take.phase is not Phase.PENDING:
            return
        time.sleep(min(left, WATCH_PERIOD))
    undo(file, token)


if __name__ == "__main__":
    detach()
    watch(Path(sys.argv[1]), sys.argv[2])
