"""Things that take long to be made, and may be given up meanwhile: one hand at a time on each, by its id.

Who deletes a thing does not wait for its end: what is being made is cancelled, and deleted once it has come to rest. So
nothing appears after its deletion.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from serai.schema.errors import ConflictError

T = TypeVar("T")


class Makings:
    """`noun`: what they are, and the field that errors name."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._dropping: Counter[str] = Counter()

    def alone(self, key: str) -> asyncio.Lock:
        """To be held by whoever does something else with it."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def make(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns. Raises ConflictError if the thing is deleted meanwhile."""
        async with self.alone(key):
            if self._dropping[key]:
                raise self._given_up(key)
            task: asyncio.Task[T] = asyncio.create_task(work())
            self._under_way[key] = task
            try:
                return await task
            except asyncio.CancelledError:
                asker = asyncio.current_task()
                if asker is not None and asker.cancelling():
                    raise
                raise self._given_up(key) from None
            finally:
                del self._under_way[key]

    @contextlib.asynccontextmanager
    async def dropping(self, key: str) -> AsyncIterator[None]:
        """The thing is not being made within the block, which deletes it."""
        self._dropping[key] += 1
        try:
            if key in self._under_way:
                self._under_way[key].cancel()
            async with self.alone(key):
                yield
        finally:
            self._dropping[key] -= 1
            if not self._dropping[key]:
                del self._dropping[key]

    def _given_up(self, key: str) -> ConflictError:
        return ConflictError(f"the {self._noun} is deleted while it is made", field=self._noun, value=key)


async def to_the_end(function: Callable[..., T], *args: Any) -> T:
    """Call it in a thread; a cancellation waits until it has returned, since a thread cannot be stopped."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
