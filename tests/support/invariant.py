"""The invariant of all faults: never two running copies of a VM, and never none without a recorded reason.

A copy runs when its vCPU threads gain processor time, which the kernel counts in nanoseconds (/proc/PID/task/TID/
schedstat). They are read every few milliseconds, by a thread of its own. What a thread gained between two reads it ran
in between: that is certain however late the reads come, so two rules need no luck.

- Once a copy has run, none that ran before it may run again: every move, crash and restart is a new process. Two copies
  that run at once break this in the window after the one in which the second begins.
- While no copy runs, some host's journal has to say why: the VM's state there, or the move that it is in. In the end
  the controller has to say it too.

A paused copy's vCPU threads run as well, a little: their birth, which is over when a copy is found, then work that QEMU
queues to them, less than a millisecond before the first `cont` and some microseconds after `stop`. A thread that ends
is charged for the memory of its whole process if it is the last one of it; what such threads gain does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

WINDOW = 0.003
FIND = 0.1
"""Seconds between two searches for new copies; one is there for longer before its vCPUs may run."""
BIRTH = 5_000_000
"""Nanoseconds that vCPU threads may have when their copy is found; measured: up to 1.8 million on a busy machine."""
NOISE = 2_000_000
"""Nanoseconds that they may gain from then on before its first `cont`; measured: up to 0.6 million."""
REST = 500_000
"""Nanoseconds that it may gain in all after its copy was stopped for good; measured: up to 0.06 million."""
LIFE = 200_000
"""Nanoseconds that a guest gains within a second whatever it does, and a paused copy does not."""
QUIET = 10.0
"""Seconds without a running copy, and without a reason for it, that are borne. Its agent has to notice first."""
PATIENCE = 60.0
PF_EXITING = 4


@dataclass
class Copy:
    """One QEMU, as far as its vCPU threads tell. `since`: when the last read began, on the monotonic clock."""

    pid: int
    threads: list[Path] = field(default_factory=list)
    total: int = 0
    birth: int | None = None
    """What it had at the first read and does not count, as it may have been its birth."""
    since: float = 0.0
    lived: int = 0
    """Gained since it was last seen to live."""
    after: int = 0
    """Gained since another copy has run."""
    retired: float | None = None
    """When another copy had certainly run."""

    def find_threads(self) -> None:
        with contextlib.suppress(OSError):
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
            self.threads = [task for task in tasks if (task / "comm").read_text(encoding="ascii").startswith("CPU ")]

    def gained(self) -> int | None:
        """Nanoseconds since the last read; none of a copy that ends, or has no vCPU yet."""
        try:
            total = sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in self.threads)
            if not self.threads or any(_ends(task) for task in self.threads):
                return None
        except (OSError, IndexError):
            return None
        gain, self.total = total - self.total, total
        if self.birth is None:
            self.birth = min(total, BIRTH)
        return gain


def _ends(task: Path) -> bool:
    flags = (task / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[6]
    return bool(int(flags) & PF_EXITING)


def vcpu_time(pid: int) -> int:
    """Nanoseconds that a QEMU's vCPU threads have run so far."""
    copy = Copy(pid)
    copy.find_threads()
    gained = copy.gained()
    assert gained is not None, "QEMU ended"
    return gained


class Watch:
    """An async context manager; leaving it raises if the invariant was broken, or is in the end.

    `find` gives the pids of all copies, `recorded` the reason in some host's journal why none runs, `told` the reason
    that the controller shows.
    """

    def __init__(
        self,
        find: Callable[[], set[int]],
        recorded: Callable[[], str | None],
        told: Callable[[], Awaitable[str | None]],
        *,
        quiet: float = QUIET,
        window: float = WINDOW,
    ) -> None:
        self._find = find
        self._recorded = recorded
        self._told = told
        self._quiet = quiet
        self._copies: dict[int, Copy] = {}
        self._owner: Copy | None = None
        self._ran = time.monotonic()
        self._explained = 0.0
        """When some journal last said why no copy runs."""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(work, period), name=f"watch {work.__name__}", daemon=True)
            for work, period in ((self._look_for_copies, FIND), (self._read, window))
        ]
        self.violations: list[str] = []
        self.asked = 0
        """How often no copy had run for long, and the journals were asked why."""

    async def __aenter__(self) -> Self:
        # Copies that are there already are known from the start, however soon they run.
        await asyncio.to_thread(self._look_for_copies)
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self._settled()
        finally:
            self._stop.set()
            for thread in self._threads:
                await asyncio.to_thread(thread.join)
        assert not self.violations, self.violations

    async def _settled(self) -> None:
        """A copy runs from now on, or the controller says why none does."""
        since = time.monotonic()
        while self._ran <= since and not self.violations:
            reason = await self._told()
            if reason is not None:
                return
            assert time.monotonic() < since + PATIENCE, "no copy runs, and the controller gives no reason"
            await asyncio.sleep(0.05)

    def _run(self, work: Callable[[], None], period: float) -> None:
        # A window is as long as this thread is kept waiting.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
        try:
            while not self._stop.wait(period):
                work()
        except Exception as error:  # noqa: BLE001 - whatever it is: nothing was watched from then on
            self.violations.append(f"the watch broke: {error!r}")

    def _look_for_copies(self) -> None:
        for pid in self._find():
            copy = self._copies.get(pid) or Copy(pid)
            copy.find_threads()
            self._copies[pid] = copy
        if time.monotonic() <= self._ran + self._quiet:
            return
        self.asked += 1
        if self._recorded() is not None:
            self._explained = time.monotonic()
        # A VM that starts after a long rest runs a moment after its journal has said so.
        elif time.monotonic() > self._explained + self._quiet:
            self.violations.append(f"no copy ran for {self._quiet:g} s, and no journal says why")
            self._ran = time.monotonic()

    def _read(self) -> None:
        for copy in list(self._copies.values()):
            began = time.monotonic()
            gain = copy.gained()
            since, copy.since = copy.since, began
            if not gain:
                continue
            if copy.retired is None:
                self._runs(copy, gain)
            elif since >= copy.retired:
                copy.after += gain
                if copy.after > REST:
                    self.violations.append(
                        f"QEMU {copy.pid} ran again after QEMU {self._owner and self._owner.pid} had"
                    )
                    copy.after = 0

    def _runs(self, copy: Copy, gain: int) -> None:
        if copy.total - (copy.birth or 0) <= NOISE:
            return
        if copy is not self._owner:
            if self._owner is not None:
                self._owner.retired = time.monotonic()
            self._owner = copy
        copy.lived += gain
        if copy.lived > LIFE:
            copy.lived, self._ran = 0, time.monotonic()
