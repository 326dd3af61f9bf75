"""The invariant of all moves: never two running copies of a VM.

A copy runs when its vCPU threads gain processor time; the tests' guest writes memory all along, so a running one always
does. The clock of /proc counts in ticks of 10 ms, so one window may show both ends of a switch: two copies that both
gain in two windows in a row were running at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

WINDOW = 0.1


def vcpu_ticks(pid: int) -> int | None:
    """Processor time of a QEMU's vCPU threads, in ticks; none when it is gone."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            text = (task / "stat").read_text(encoding="ascii")
            name, _, rest = text.partition("(")[2].rpartition(")")
            if name.startswith("CPU "):
                fields = rest.split()
                total += int(fields[11]) + int(fields[12])
    except OSError:
        return None
    return total


class Watch:
    """An async context manager; leaving it raises if two copies ran at once. `most` is the highest count seen."""

    def __init__(self, find: Callable[[], set[int]]) -> None:
        self._find = find
        self._task: asyncio.Task[None] | None = None
        self.violations: list[str] = []
        self.windows = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        assert not self.violations, self.violations
        assert self.windows > 0

    async def _run(self) -> None:
        before: dict[int, int] = {}
        gained_before: set[int] = set()
        while True:
            ticks = await asyncio.to_thread(lambda: {pid: vcpu_ticks(pid) for pid in self._find()})
            now = {pid: count for pid, count in ticks.items() if count is not None}
            gained = {pid for pid, count in now.items() if pid in before and count > before[pid]}
            both = gained & gained_before
            if len(both) > 1:
                self.violations.append(f"two copies ran at once: {sorted(both)}")
            before, gained_before = now, gained
            self.windows += 1
            await asyncio.sleep(WINDOW)
