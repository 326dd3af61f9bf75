"""The checker of the fault tests, on processes that do what copies of a VM must not.

Each is a process with a thread named as QEMU names a vCPU's, which works or sleeps as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Self

import pytest
from tests.support.invariant import NOISE, Watch, vcpu_time
from tests.support.looking import until

COPY = """
import sys, threading, time
work = threading.Event()
def vcpu():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as name:
        name.write("CPU 0/TCG")
    while True:
        if not work.is_set():
            print("stands", flush=True)
            work.wait()
        sum(range(1000))
threading.Thread(target=vcpu, daemon=True).start()
for line in sys.stdin:
    work.set() if line == "run\\n" else work.clear()
"""


class Copy:
    """`run` and `pause` return when it does so."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls) -> Self:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", COPY, stdin=pipe, stdout=pipe)
        copy = cls(process)
        await copy.stands()
        return copy

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    async def run(self) -> None:
        before = vcpu_time(self.pid)
        self._tell("run")
        await until(lambda: vcpu_time(self.pid) > before + 5 * NOISE, "a copy to run")

    async def pause(self) -> None:
        self._tell("pause")
        await self.stands()

    async def stands(self) -> None:
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"stands\n"

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class Ground:
    def __init__(self, copies: list[Copy]) -> None:
        self.first, self.second = copies
        self.found = {copy.pid for copy in copies}
        self.reason: str | None = None

    def watch(self, quiet: float = 60.0) -> Watch:
        async def told() -> str | None:
            return self.reason

        return Watch(lambda: set(self.found), lambda: self.reason, told, quiet=quiet)


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    copies = [await Copy.start(), await Copy.start()]
    try:
        yield Ground(copies)
    finally:
        for copy in copies:
            await copy.end()


async def test_one_after_the_other_is_a_move(ground: Ground) -> None:
    async with ground.watch():
        await ground.first.run()
        await ground.first.pause()
        await ground.second.run()
        await ground.first.end()


async def test_one_that_is_taken_up_again_is_a_move_that_failed(ground: Ground) -> None:
    async with ground.watch():
        for _ in range(3):
            await ground.first.run()
            await ground.first.pause()
        await ground.first.run()


async def test_two_at_once_are_found(ground: Ground) -> None:
    watch = ground.watch()
    with pytest.raises(AssertionError, match="ran again"):
        async with watch:
            await ground.first.run()
            await ground.second.run()
            await until(lambda: watch.violations, "the violation")


async def test_one_that_runs_after_it_has_left_is_found(ground: Ground) -> None:
    watch = ground.watch()
    with pytest.raises(AssertionError, match=f"QEMU {ground.first.pid} ran again"):
        async with watch:
            await ground.first.run()
            await ground.first.pause()
            await ground.second.run()
            await ground.second.pause()
            await ground.first.run()
            await until(lambda: watch.violations, "the violation")


async def test_none_without_a_reason_is_found(ground: Ground) -> None:
    watch = ground.watch(quiet=0.2)
    with pytest.raises(AssertionError, match="no journal says why"):
        async with watch:
            await ground.first.run()
            await ground.first.pause()
            await until(lambda: watch.violations, "the violation")


async def test_none_with_a_reason_is_in_order(ground: Ground) -> None:
    async with ground.watch(quiet=0.2) as watch:
        await ground.first.run()
        ground.reason = "stopped on h1: as asked"
        await ground.first.end()
        await until(lambda: watch.asked, "the journals to be asked")


async def test_a_reason_holds_for_a_moment_longer_than_it_is_recorded() -> None:
    """A VM that starts after a long rest: its journal says `running` before its first instruction."""
    said = iter(["stopped on h1: as asked", None])
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def recorded() -> str | None:
        reason = next(said, "it ran, and was stopped again")
        if reason is None:
            loop.call_soon_threadsafe(over.set)
        return reason

    async def told() -> str | None:
        return "stopped"

    watch = Watch(set, recorded, told, quiet=5.0)
    watch._ran -= 60
    async with watch:
        await over.wait()
        await until(lambda: watch.asked > 2, "the journals to be asked again")
