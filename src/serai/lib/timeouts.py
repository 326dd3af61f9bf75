"""`time_limit`: asyncio's, and up to Python 3.11.2, which is Debian 12's, one that also works in a cancelled task.

There `asyncio.timeout` hands its own cancellation on as CancelledError if its task had been cancelled before (CPython
issue 102780). Clean-up runs in such tasks: what it does on TimeoutError, as SIGKILL after SIGTERM, would not be done.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager
from types import TracebackType


class Timeout:
    """An async context manager: a body that takes longer than `delay` seconds is cancelled, and TimeoutError raised."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._expired = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a timeout is for tasks")
        self._task = task
        self._before = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._delay, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # A cancellation by somebody else that came meanwhile goes on.
        if self._expired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error


def time_limit(delay: float) -> AbstractAsyncContextManager[object]:
    """Raise TimeoutError from the body if it takes longer than `delay` seconds."""
    if sys.version_info >= (3, 11, 3):
        return asyncio.timeout(delay)  # noqa: TID251 - this Python's is sound
    return Timeout(delay)
