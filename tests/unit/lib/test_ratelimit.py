"""The bucket."""

import asyncio

import pytest

from serai.lib.clock import ManualClock
from serai.lib.ratelimit import BURST, RateLimit


async def test_takers_share_the_rate_in_order() -> None:
    clock = ManualClock()
    limit = RateLimit(1000, clock=clock)
    done: list[tuple[str, float]] = []

    async def take(name: str, count: int) -> None:
        await limit.take(count)
        done.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(take(name, 1000)) for name in "abc"]
    while len(done) < 3:
        await asyncio.sleep(0)
        if clock.sleepers:
            clock.advance(0.5)
    await asyncio.gather(*tasks)
    assert done == [("a", 1.0), ("b", 2.0), ("c", 3.0)]


async def test_a_pause_earns_a_small_burst_only() -> None:
    clock = ManualClock()
    limit = RateLimit(1000, clock=clock)
    clock.advance(100)
    await limit.take(int(1000 * BURST))
    assert clock.monotonic() == 100
    waiting = asyncio.create_task(limit.take(100))
    await asyncio.sleep(0)
    assert clock.sleepers == 1
    clock.advance(0.2)
    await waiting
    with pytest.raises(ValueError, match="above zero"):
        RateLimit(0)
