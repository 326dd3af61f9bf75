"""The loop that repeats one pass.

A reconciler takes no arguments: it reads all, computes, converges, once every period and on news. A pass that fails is
logged and tried again, each time later, up to `BACKOFF_LIMIT`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serai.lib.clock import Clock, SystemClock
from serai.lib.tasks import first_of

log = logging.getLogger(__name__)

BACKOFF_FIRST = 0.5
"""Seconds after the first failure; twice as many after each further one."""
BACKOFF_LIMIT = 30.0
"""Seconds between two attempts at most."""


class Reconciler:
    """One loop around one pass. Start `run()` as a task of some owner."""

    def __init__(
        self,
        name: str,
        act: Callable[[], Awaitable[None]],
        *,
        period: float,
        clock: Clock | None = None,
        news: Callable[[], asyncio.Event] = asyncio.Event,
    ) -> None:
        """`act` is one pass; `period` in seconds. `news` gives an event that is set once a pass is due before that."""
        self.name = name
        self._act = act
        self._period = period
        self._clock = clock or SystemClock()
        self._news = news
        self.failures = 0
        """How many passes failed in a row."""
        self.last_error: Exception | None = None
        """Why the last pass failed; None if it did not."""

    async def run(self) -> None:
        """Run passes until cancelled; the first at once."""
        while True:
            news = self._news()
            try:
                await self._act()
            except Exception as error:
                self.failures += 1
                if str(error) != str(self.last_error):
                    log.error("reconciler %s failed: %s", self.name, error, exc_info=error)
                self.last_error = error
            else:
                if self.failures:
                    log.info("reconciler %s works again after %d failures", self.name, self.failures)
                self.failures = 0
                self.last_error = None
            await first_of(self._clock.sleep(self._pause()), news.wait())

    def _pause(self) -> float:
        if not self.failures:
            return self._period
        return min(BACKOFF_FIRST * 2.0 ** min(self.failures - 1, 10), BACKOFF_LIMIT)
