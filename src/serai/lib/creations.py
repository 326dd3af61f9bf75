"""Slow creations that a deletion cancels: at most one operation at a time for each id.

A deletion does not wait for a creation to finish. It cancels the creation, waits until its clean-up has ended, and then
deletes. So nothing appears after its deletion.
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


class Creations:
    """The creations of one kind of resource. `noun` names the kind, in messages and as the field of errors."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._deleting: Counter[str] = Counter()

    def lock(self, key: str) -> asyncio.Lock:
        """The lock that excludes creation and deletion; hold it for any other operation on the resource."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def create(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work` and return its result. Raises ConflictError if the resource is deleted in the meantime."""
        async with self.lock(key):
            if self._deleting[key]:
                raise self._deleted(key)
            task: asyncio.Task[T] = asyncio.create_task(work())
            self._running[key] = task
            try:
                return await task
            except asyncio.CancelledError:
                caller = asyncio.current_task()
                if caller is not None and caller.cancelling():
                    raise
                raise self._deleted(key) from None
            finally:
                del self._running[key]

    @contextlib.asynccontextmanager
    async def deleting(self, key: str) -> AsyncIterator[None]:
        """Cancel a running creation and refuse new ones while the block, which deletes the resource, runs."""
        self._deleting[key] += 1
        try:
            if key in self._running:
                self._running[key].cancel()
            async with self.lock(key):
                yield
        finally:
            self._deleting[key] -= 1
            if not self._deleting[key]:
                del self._deleting[key]

    def _deleted(self, key: str) -> ConflictError:
        return ConflictError(f"the {self._noun} was deleted while it was being created", field=self._noun, value=key)


async def to_thread_shielded(function: Callable[..., T], *args: Any) -> T:
    """Call it in a thread; a cancellation waits until it has returned, since a thread cannot be stopped."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
