"""An undo stack for a local action of many system calls.

After each call that changed something, push what would undo it. Leave the block with an exception, a cancellation
included, and the undo calls run in reverse; call `keep` when all has succeeded and nothing is undone. An undo that
fails is logged and noted on the exception, and the others still run.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

Undo = Callable[[], Awaitable[object] | object]


class Rollback:
    """The stack; an async context manager, good for one use."""

    def __init__(self) -> None:
        self._stack: list[tuple[str, Undo]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # Leaving without `keep` is success too: only an exception undoes.
            self._stack.clear()
            return
        failures = await self.undo()
        for failure in failures:
            error.add_note(f"undo failed too: {failure}")

    def push(self, name: str, undo: Undo) -> None:
        """Remember how to undo what was just done; `undo` takes no arguments and may be async."""
        self._stack.append((name, undo))

    def keep(self) -> None:
        """Forget all: what was done stays."""
        self._stack.clear()

    async def undo(self) -> list[str]:
        """Undo all now, last first; return a line for each undo that failed.

        A cancellation that arrives meanwhile does not stop the undoing; it is raised again afterwards.
        """
        task = asyncio.ensure_future(self._unwind())
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None and not task.cancelled():
            raise cancelled
        return task.result()

    async def _unwind(self) -> list[str]:
        failures: list[str] = []
        while self._stack:
            name, undo = self._stack.pop()
            try:
                outcome = undo()
                if inspect.isawaitable(outcome):
                    await outcome
            except Exception as error:
                # Whatever one undo raises must not keep the others from running.
                log.warning("undo of %s failed: %s", name, error, exc_info=error)
                failures.append(f"{name}: {error}")
        return failures
