"""A VM of the random fault test, and the attendant of its disk: no write that was acknowledged may be lost.

The guest's disk writer is started after each boot, once the volume was seen to hold what the boot before it had had
acknowledged. While the guest runs, the writer reads back what it wrote, and counts what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.faults.blocks import A_SECOND, lost

from bench.workload import DiskCount, Guest
from serai.schema.errors import SeraiError, UnavailableError
from serai.schema.vm import Vm

EVERY = 0.3
"""Seconds between two questions to a guest."""
ANSWER = 3.0
"""Seconds in which a guest answers that is not held up."""


@dataclass
class Subject:
    """`label` is what the sequence calls it, `volume` the file of its disk."""

    label: str
    vm: Vm
    guest: Guest
    volume: Path
    boot: str = ""
    boots: int = 0
    count: DiskCount | None = None
    """What the writer of this boot said last."""
    asked: float = 0.0
    """When it was asked for that, on the monotonic clock."""
    moved: int = 0
    """Blocks in all that were acknowledged."""

    async def attend(self, over: asyncio.Event, report: Callable[[str], None]) -> None:
        """Look after the disk until it is over; `report` is told of each violation."""
        while not over.is_set():
            with contextlib.suppress(UnavailableError):
                await self._look(report)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await over.wait()

    async def _look(self, report: Callable[[str], None]) -> None:
        boot = str((await self.guest.request("boot-id", timeout=ANSWER))["boot_id"])
        if boot != self.boot:
            # The writer of this boot stands still yet: nothing changes the volume.
            for line in await asyncio.to_thread(self.lost):
                report(f"{self.label}: {line}")
            self.boot, self.boots, self.count, self.asked = boot, self.boots + 1, None, 0.0
        asked = time.monotonic()
        count = DiskCount.model_validate(await self.guest.request("disk check", timeout=ANSWER))
        if count.errors:
            report(f"{self.label}: the guest's disk writer met {count.errors} errors: {count}")
        before = self.count.written if self.count else 0
        if count.written < before:
            return  # It has booted in between; the next look sees that.
        if not count.on and before == 0:
            # Asked again where the answer was lost: it has written nothing.
            await self.guest.request("disk start /dev/vda", timeout=ANSWER)
        self.moved += count.written - before
        self.count, self.asked = count, asked

    def lost(self) -> list[str]:
        """What the volume has not of what was acknowledged. Nobody writes to it meanwhile."""
        if self.count is None:
            return []
        more = int((time.monotonic() - self.asked + 1) * A_SECOND)
        return lost(self.volume.read_bytes(), self.count.written, more)

    async def answers(self) -> bool:
        """Whether its guest does, at once."""
        try:
            await self.guest.request("uptime", timeout=ANSWER)
        except UnavailableError:
            return False
        return True

    async def writes(self, patience: float) -> None:
        """The writer gets on from now, and nothing that it read back was wrong."""
        deadline, since = time.monotonic() + patience, time.monotonic()
        first: int | None = None
        while True:
            if self.count is not None and self.asked > since:
                first = self.count.written if first is None else first
                if self.count.on and self.count.written > first:
                    return
            assert time.monotonic() < deadline, f"{self.label}: its disk writer does not get on: {self.count}"
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """End the writer; all that it has written is read back by the guest, and found on the volume."""
        count = await self.guest.stop_disk()
        assert (count.on, count.errors) == (False, 0), f"{self.label}: {count}"
        self.count, self.asked = count, time.monotonic()
        found = lost(self.volume.read_bytes(), count.written, 0)
        assert not found, f"{self.label}: {found}"


def told(error: BaseException) -> str:
    """An error in one line."""
    return error.info.sentence() if isinstance(error, SeraiError) else repr(error)
