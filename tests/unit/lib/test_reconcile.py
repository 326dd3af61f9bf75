"""The activate-or-period loop, on a clock turned by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from serai.lib.clock import ManualClock
from serai.lib.reconcile import Reconciler
from serai.lib.tasks import Tasks


class Pass:
    """A pass that can be held and made to fail."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self) -> None:
        self.count += 1
        await self.hold.wait()
        if self.error is not None:
            raise self.error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks("test") as owner:
        yield owner


async def test_it_runs_at_once_then_by_period_or_when_woken(tasks: Tasks) -> None:
    clock, act = ManualClock(), Pass()
    loop = Reconciler("vms", act, period=60, clock=clock)
    tasks.start(loop.run())
    await until(lambda: clock.sleepers == 1)
    assert act.count == 1
    clock.advance(59)
    await asyncio.sleep(0)
    assert act.count == 1
    clock.advance(1)
    await until(lambda: act.count == 2)
    await until(lambda: clock.sleepers == 1)
    loop.wake()
    await until(lambda: act.count == 3)
    await loop.settled()
    assert loop.passes == 4


async def test_wakes_during_a_pass_make_one_more(tasks: Tasks) -> None:
    clock, act = ManualClock(), Pass()
    act.hold.clear()
    loop = Reconciler("vms", act, period=60, clock=clock)
    tasks.start(loop.run())
    await until(lambda: act.count == 1)
    for _ in range(5):
        loop.wake()
    waiting = asyncio.create_task(loop.settled())
    await asyncio.sleep(0)
    act.hold.set()
    await waiting
    await until(lambda: clock.sleepers == 1)
    assert act.count == 2


async def test_failures_are_retried_later_and_later(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    clock, act = ManualClock(), Pass()
    act.error = OSError("no target")
    loop = Reconciler("vms", act, period=60, clock=clock)
    tasks.start(loop.run())
    await until(lambda: clock.sleepers == 1)
    loop.wake()  # cannot make it spin
    await asyncio.sleep(0)
    assert act.count == 1
    clock.advance(0.5)
    await until(lambda: act.count == 2 and clock.sleepers == 1)
    assert (loop.failures, str(loop.last_error)) == (2, "no target")
    clock.advance(0.5)
    await until(lambda: clock.sleepers == 1)
    act.error = None
    loop.wake()  # cuts the rest of the pause short
    await until(lambda: act.count == 3)
    await until(lambda: loop.passes == 3)
    assert (loop.failures, loop.last_error) == (0, None)
    assert caplog.text.count("reconciler vms failed") == 1
