"""The record of one job at work, and how it gets into the store.

All that is recorded of a job is here. `write` waits for a database that cannot be used for a while; `write_once` raises
StoreUnavailableError.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from serai.controller.store import JobRecord, Store, StoreUnavailableError, Transaction, until_it_works
from serai.lib.tasks import Tasks
from serai.schema.job import Job
from serai.schema.resource import Frozen

StateT = TypeVar("StateT", bound=Frozen)

PROGRESS_DELAY = 0.05
"""Seconds that mere progress waits for a write that tells more, as the next step's beginning does."""
PROGRESS_PERIOD = 0.2
"""Seconds between two writes of mere progress."""
PROGRESS_RETRY = 0.5
"""Seconds before progress that could not be written is written again."""


class Writer(Generic[StateT]):
    """`job` and `state`, the workflow's memory, are what is known now."""

    def __init__(self, record: JobRecord, state: StateT, store: Store, tasks: Tasks) -> None:
        self.job = record.job
        self.state = state
        self.attempt = record.attempt
        self.step = ""
        """The step that runs, or is being undone."""
        self.durable = record.job.state
        """The job's state as it was last written."""
        self._version = record.version
        self._durable_memory = record.memory
        self._store = store
        self._tasks = tasks
        self._lock = asyncio.Lock()
        self._stale = False

    def update(self, **fields: Any) -> None:
        """Change fields of the job."""
        self.job = self.job.model_copy(update=fields)

    def show(self, **fields: Any) -> None:
        """Change fields of the job and write them soon; many changes make one write."""
        self.update(**fields)
        self._stale = True
        name = f"progress-{self.job.id}"
        if name not in self._tasks and not self._tasks.closed:
            self._tasks.start(self._write_progress(), name)

    def remember(self, changes: Mapping[str, Any]) -> None:
        """Replace fields of the workflow's state. Raises ValueError for what the model, or JSON, does not take."""
        state = type(self.state).model_validate({**dict(self.state), **changes})
        state.model_dump_json()
        self.state = state

    def forget(self) -> None:
        """Back to the workflow's state as it was last written."""
        self.state = type(self.state).model_validate_json(self._durable_memory)

    async def write(self, *, quiet: bool = False) -> None:
        """Write all of it; `quiet`: without an event."""
        await until_it_works(self._store.clock, functools.partial(self.write_once, quiet=quiet))

    async def write_once(self, *, kind: str = "job.state", quiet: bool = False) -> None:
        """Write all of it, with an event of this kind unless `quiet`. Raises StoreUnavailableError."""
        async with self._lock:
            job, memory = self.job, self.state.model_dump_json()
            self._stale = False
            async with self._store.transaction() as tx:
                await tx.jobs.save(JobRecord(job, memory, self._version, self.attempt))
                if not quiet:
                    await announce(tx, job, kind=kind, step=self.step)
            self.durable, self._durable_memory = job.state, memory

    async def _write_progress(self) -> None:
        await asyncio.sleep(PROGRESS_DELAY)
        while self._stale and not self.job.state.ended:
            try:
                await self.write_once(kind="job.progress")
            except StoreUnavailableError:
                self._stale = True
                await asyncio.sleep(PROGRESS_RETRY)
            await asyncio.sleep(PROGRESS_PERIOD)


async def announce(tx: Transaction, job: Job, *, kind: str = "job.state", step: str = "") -> None:
    """Write the event that says which job it is, how it stands, and why."""
    waits = f"waits for {job.waits_for}" if job.waits_for else ""
    detail = job.error.sentence() if job.error and job.state.ended else job.message or waits
    message = f"{job.kind} {job.id} is {job.state}" + (f": {detail}" if detail else "")
    await tx.emit(kind, job.target, job.id, message, job=job.id, kind=job.kind, state=job.state.value, step=step)
