"""The loop that repeats one pass, on a clock turned by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from serai.lib.clock import ManualClock
from serai.lib.reconcile import Reconciler
from serai.lib.tasks import Tasks


class Pass:
    """A pass that can be made to fail."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.count += 1
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


async def test_it_runs_at_once_and_then_once_a_period(tasks: Tasks) -> None:
    clock, act = ManualClock(), Pass()
    tasks.start(Reconciler("vms", act, period=60, clock=clock).run())
    await until(lambda: clock.sleepers == 1)
    assert act.count == 1
    clock.advance(59)
    await asyncio.sleep(0)
    assert act.count == 1
    clock.advance(1)
    await until(lambda: act.count == 2)


async def test_failures_are_retried_later_and_later(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    clock, act = ManualClock(), Pass()
    act.error = OSError("no target")
    loop = Reconciler("vms", act, period=60, clock=clock)
    tasks.start(loop.run())
    for count, pause in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0), 1):
        await until(lambda: clock.sleepers == 1)
        assert (act.count, loop.failures, str(loop.last_error)) == (count, count, "no target")
        clock.advance(pause - 0.1)
        await asyncio.sleep(0)
        assert clock.sleepers == 1
        clock.advance(0.1)
        await until(lambda count=count: act.count > count)  # type: ignore[misc] # a default argument binds the loop's value
    await until(lambda: clock.sleepers == 1)
    act.error = None
    clock.advance(30)
    await until(lambda: clock.sleepers == 1 and not loop.failures)
    assert loop.last_error is None
    assert caplog.text.count("reconciler vms failed") == 1
