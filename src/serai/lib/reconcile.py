"""The activate-or-period loop.

A reconciler takes no arguments: it reads all, computes, converges. Events only wake it, and any number of them while
it works make one more pass. Without events it runs every period, so that a lost event costs time and nothing else.
A pass that fails is logged and tried again, each time later, up to `BACKOFF_LIMIT`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serai.lib.clock import Clock, SystemClock

log = logging.getLogger(__name__)

BACKOFF_FIRST = 0.5
"""Seconds after the first failure during which not even an event starts a pass: what fails must not spin."""
BACKOFF_LIMIT = 30.0
"""Seconds between two attempts at most."""


class Reconciler:
    """One loop around one pass. Start `run()` as a task of some owner; wake it from anywhere in the event loop."""

    def __init__(
        self, name: str, act: Callable[[], Awaitable[None]], *, period: float, clock: Clock | None = None
    ) -> None:
        """`act` is one pass; `period` in seconds."""
        self.name = name
        self._act = act
        self._period = period
        self._clock = clock or SystemClock()
        self._woken = asyncio.Event()
        self._changed = asyncio.Condition()
        self._started = 0
        self._finished = 0
        self.failures = 0
        """How many passes failed in a row."""
        self.last_error: Exception | None = None
        """Why the last pass failed; None if it did not."""

    @property
    def passes(self) -> int:
        """How many passes are over, failed ones included."""
        return self._finished

    def wake(self) -> None:
        """Ask for a pass that starts after now."""
        self._woken.set()

    async def settled(self) -> None:
        """Wake it, and return when a pass that started after this call is over (well or not)."""
        target = self._started + 1
        self.wake()
        async with self._changed:
            await self._changed.wait_for(lambda: self._finished >= target)

    async def run(self) -> None:
        """Run passes until cancelled; the first at once."""
        while True:
            self._woken.clear()
            self._started += 1
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
            async with self._changed:
                self._finished = self._started
                self._changed.notify_all()
            await self._pause()

    async def _pause(self) -> None:
        if not self.failures:
            await self._woken_within(self._period)
            return
        delay = min(BACKOFF_FIRST * 2 ** min(self.failures - 1, 10), BACKOFF_LIMIT)
        await self._clock.sleep(BACKOFF_FIRST)
        if delay > BACKOFF_FIRST:
            await self._woken_within(delay - BACKOFF_FIRST)

    async def _woken_within(self, seconds: float) -> None:
        waits = (asyncio.ensure_future(self._woken.wait()), asyncio.ensure_future(self._clock.sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
