"""A rate limit for bytes: one bucket may serve many streams (a rate class of a link) or one."""

import asyncio

from serai.lib.clock import Clock, SystemClock

BURST = 0.1
"""Seconds' worth of bytes that may pass at once."""


class RateLimit:
    """A leaky bucket of `rate` bytes per second; `take` waits until the bytes may pass."""

    def __init__(self, rate: float, *, clock: Clock | None = None) -> None:
        if rate <= 0:
            raise ValueError(f"a rate is above zero, not {rate} bytes/s")
        self.rate = rate
        self._clock = clock or SystemClock()
        self._free_at = self._clock.monotonic()

    async def take(self, count: int) -> None:
        """Return when `count` bytes may pass. Takers are served in the order in which they came."""
        now = self._clock.monotonic()
        # The bytes are booked before the wait, so that takers queue up behind one another.
        self._free_at = max(self._free_at, now - BURST) + count / self.rate
        wait = self._free_at - now
        if wait > 0:
            await self._clock.sleep(wait)
        else:
            await asyncio.sleep(0)
