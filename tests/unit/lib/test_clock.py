"""The clock that tests turn by hand."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from serai.lib.clock import ManualClock, SystemClock


async def test_manual_clock_wakes_sleepers_in_order() -> None:
    clock = ManualClock()
    start = clock.now()
    woken: list[int] = []

    async def sleep(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2)]
    await asyncio.sleep(0)
    assert clock.sleepers == 3
    clock.advance(2.5)
    await asyncio.gather(*tasks[1:])
    assert woken == [1, 2]
    tasks[0].cancel()
    await asyncio.wait(tasks)
    clock.advance(1)
    assert clock.sleepers == 0
    assert clock.now() - start == timedelta(seconds=3.5)
    assert clock.monotonic() == 3.5
    await clock.sleep(0)
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


async def test_system_clock() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() > before
    assert clock.now().tzinfo is UTC
    assert clock.now() > datetime(2024, 1, 1, tzinfo=UTC)
