"""Probes from the lab's probe node: what a client of an address sees while something else happens.

The measuring itself is another process (`prober.py`), outside of everything that Serai runs. It keeps its samples in
memory and writes them to a file at the end: an output pipe that nobody reads would stop it, and look like an outage.

    prober = await Prober.start("lab", "10.77.0.100")
    await prober.answered()
    …
    report = await prober.stop()
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

from serai.lab import enter, samples
from serai.lab.samples import Kind, ProbeReport
from serai.lab.state import LabFolder
from serai.lib import process
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError, InvalidError, UnavailableError

BOTH = (Kind.ICMP, Kind.UDP)
INTERVAL = 0.002
"""Seconds between two requests of a kind: fine enough for outages of some tens of milliseconds."""
SHORTEST = 0.0005


class Prober:
    """A probe under way. Always `stop` it, or use it as an async context manager, which discards the result."""

    def __init__(self, child: process.Child, folder: Path) -> None:
        self._child = child
        self._folder = folder

    @classmethod
    async def start(
        cls,
        lab: str,
        address: str,
        *,
        interval: float = INTERVAL,
        duration: float | None = None,
        kinds: Sequence[Kind] = BOTH,
        node: str = "probe",
    ) -> Prober:
        """Begin to send every `interval` seconds to `address`, for `duration` seconds or until `stop`.

        Raises InvalidError, NotFoundError for a lab that does not stand.
        """
        _check(address, interval, duration)
        lab_folder = LabFolder.of(lab)
        prefix = enter.prefix(lab_folder, lab_folder.load(), node)
        folder = Path(tempfile.mkdtemp(dir=lab_folder.probes))
        argv = [*prefix, *enter.python("serai.lab.prober"), address, "--out", str(folder / "samples")]
        argv += ["--interval-ns", str(round(interval * samples.NS)), "--kinds", ",".join(kinds)]
        if duration is not None:
            argv += ["--for-ns", str(round(duration * samples.NS))]
        try:
            child = await process.spawn(
                argv, stdout=folder / "log", stderr=folder / "log", env=enter.environment(lab_folder)
            )
        except BaseException:
            shutil.rmtree(folder)
            raise
        return cls(child, folder)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def answered(self, timeout: float = 30.0) -> None:
        """Return once each kind has been answered. Raises UnavailableError after `timeout` seconds, HostError."""
        try:
            async with time_limit(timeout):
                while not (self._folder / "samples.answered").exists():
                    if not self._child.alive:
                        raise await self._failure()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise UnavailableError(f"no answer to the probe within {timeout:g} s") from None

    def end(self) -> None:
        """Send no more, without waiting."""
        self._child.send_signal(signal.SIGTERM)

    async def wait(self) -> None:
        """Return once a probe with a duration is over."""
        # The lab's end, in this very process, may have reaped it.
        with contextlib.suppress(ChildProcessError):
            await self._child.exited()

    async def stop(self, *, threshold: float | None = None) -> ProbeReport:
        """Send no more, wait up to a second for the last answers, and return what was seen.

        `threshold` in seconds: gaps from there up are listed. Raises HostError if the prober had failed.
        """
        try:
            self._child.send_signal(signal.SIGTERM)
            await self.wait()
            file = self._folder / "samples"
            if not file.exists():
                raise await self._failure()
            limit = None if threshold is None else round(threshold * samples.NS)
            return await asyncio.to_thread(samples.load, file, limit)
        finally:
            await self._end()

    async def _end(self) -> None:
        self._child.send_signal(signal.SIGKILL)
        await self.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _failure(self) -> HostError:
        await self.wait()
        code = self._child.returncode
        said = ""
        with contextlib.suppress(FileNotFoundError):
            said = (self._folder / "log").read_text(errors="replace")[-process.STDERR_TAIL :].strip()
        return HostError(f"the prober ended with code {code}: {said}")


async def probe_for(
    lab: str, address: str, seconds: float, *, interval: float = INTERVAL, kinds: Sequence[Kind] = BOTH
) -> ProbeReport:
    """Probe for so many seconds and return what was seen; SIGINT ends it earlier, with the report all the same."""
    prober = await Prober.start(lab, address, interval=interval, duration=seconds, kinds=kinds)
    loop = asyncio.get_running_loop()
    over = asyncio.ensure_future(prober.wait())
    loop.add_signal_handler(signal.SIGINT, prober.end)
    try:
        await over
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return await prober.stop()


def _check(address: str, interval: float, duration: float | None) -> None:
    try:
        IPv4Address(address)
    except ValueError as error:
        raise InvalidError(
            "not an IPv4 address", field="address", value=address, remedy="Give one such as 10.77.0.100."
        ) from error
    if interval < SHORTEST:
        raise InvalidError(
            "too short an interval", field="interval", value=f"{interval:g} s", remedy="Give 0.5ms or more."
        )
    if duration is not None and duration <= 0:
        raise InvalidError("a probe takes some time", field="for", value=f"{duration:g} s", remedy="Give 1s or more.")
