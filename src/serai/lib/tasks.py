"""Background tasks with an owner.

Every task belongs to one `Tasks`, which awaits it: none is lost to the garbage collector, none fails in silence, and
closing the owner ends them all.
"""

import asyncio
import functools
import logging
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Tasks:
    """Owner of named tasks; also an async context manager that closes at the end.

    A task that ends with an exception is logged. A name is free again when its task is over.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._closed = False
        self._anonymous = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """True once `close` was called: it takes no more tasks."""
        return self._closed

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def start(self, coroutine: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Run the coroutine as a task of that name and return it.

        Raises RuntimeError if the name is in use or the owner is closed; the coroutine is closed then.
        """
        if name is None:
            self._anonymous += 1
            name = f"task-{self._anonymous}"
        if self._closed or name in self._tasks:
            coroutine.close()
            reason = "it is closed" if self._closed else "a task of that name runs"
            raise RuntimeError(f"cannot start task {name!r} of {self.name}: {reason}")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self.name}:{name}")
        self._tasks[name] = task
        task.add_done_callback(functools.partial(self._over, name))
        return task

    async def close(self) -> None:
        """Cancel all, wait for their ends, and start none any more."""
        self._closed = True
        # A task may close its own owner; it cannot await itself.
        current = asyncio.current_task()
        others = [task for task in self._tasks.values() if task is not current]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)

    def _over(self, name: str, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(name, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("task %s of %s failed: %s", name, self.name, error, exc_info=error)


async def first_of(*waits: Coroutine[Any, Any, object], timeout: float | None = None) -> None:
    """Return once one of these is over, or after `timeout` seconds; the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def unless_over(work: asyncio.Task[None], wait: Coroutine[Any, Any, object]) -> None:
    """Wait for `wait`, unless `work` ends before; then raise what ended it. Raises what `wait` raises."""
    waiting = asyncio.create_task(wait)
    try:
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await (waiting if waiting.done() else work)
    finally:
        waiting.cancel()
