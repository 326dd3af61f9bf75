"""The account of a job at work: its state, and how that gets into the store.

All of a job's state is in `job`, changed by `_set` alone and written by `_write` alone. `_write` waits for a database
that cannot be used for a while; `_write_once` raises StoreUnavailableError.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from typing import Any

from serai.controller import marks
from serai.controller.commands import CommandSender
from serai.controller.jobs import JobContext, Workflow
from serai.controller.store import JobRecord, Store, StoreUnavailableError, until_it_works
from serai.lib.tasks import Tasks
from serai.schema.errors import ErrorInfo
from serai.schema.job import Job, JobState, StepState

log = logging.getLogger(__name__)

PROGRESS_DELAY = 0.05
"""Seconds that mere progress waits for a write that tells more, as the next step's beginning does."""
PROGRESS_PERIOD = 0.2
"""Seconds between two writes of mere progress."""
RETRY_FIRST = 0.5
"""Seconds before the second attempt of a write, an undo, or a step behind the point of no return."""


class Account:
    """One job's state and the writing of it. `ctx` is what its steps see."""

    def __init__(
        self, record: JobRecord, workflow: Workflow, *, store: Store, hosts: CommandSender, tasks: Tasks
    ) -> None:
        self.job = record.job
        self.workflow = workflow
        self._attempt = record.attempt
        self._store = store
        self._tasks = tasks
        self._writing = asyncio.Lock()
        self._stale = False
        self.ctx = JobContext(record.job, dict(record.data), store, hosts, self)
        self._kept = self._durable = json.dumps(record.data)
        self._durable_state = record.job.state
        if record.job.state is JobState.CANCELLING:
            self.ctx.cancelled.set()

    # --- what a context needs ---

    async def save(self, ctx: JobContext) -> None:
        """Write the context's data now."""
        await self._write(quiet=True)

    def touched(self, ctx: JobContext) -> None:
        """Write progress soon; many changes make one write."""
        self._stale = True
        name = f"progress-{self.job.id}"
        if name not in self._tasks and not self._tasks.closed:
            self._tasks.start(self._write_progress(), name)

    async def _write_progress(self) -> None:
        await asyncio.sleep(PROGRESS_DELAY)
        while self._stale and not self.job.state.ended:
            try:
                await self._write_once(kind="job.progress")
            except StoreUnavailableError:
                self._stale = True
                await asyncio.sleep(RETRY_FIRST)
            await asyncio.sleep(PROGRESS_PERIOD)

    # --- state ---

    def _committed(self) -> bool:
        return marks.committed(self.workflow.steps, self.job)

    def _keep_sound_data(self) -> None:
        self.ctx.result = None
        try:
            json.dumps(self.ctx.data)
        except (TypeError, ValueError) as error:
            # The step broke its word that `data` is JSON: what stood before the step is what can be undone from.
            log.error("job %s: the data of step %s is dropped: %s", self.job.id, self.ctx.step, error)
            self.ctx.data = json.loads(self._kept)

    def _set(self, **fields: Any) -> None:
        self.job = self.job.model_copy(update=fields)

    def _step(self, index: int, state: StepState, detail: str = "") -> None:
        self.job = marks.with_step(self.job, index, state, self._store.clock.now(), detail)

    def _skip_pending(self) -> None:
        self.job = marks.without_pending(self.job, self._store.clock.now())

    async def _end(self, state: JobState, error: ErrorInfo | None) -> None:
        self.ctx.waiting = ""
        fraction = 1.0 if state is JobState.DONE else self.ctx.fraction
        self.ctx.fraction = fraction
        if state is not JobState.DONE:
            self.ctx.result = None
        self._set(state=state, error=error, ended=self._store.clock.now(), result=self.ctx.result)
        await self._write()

    async def _write(self, *, quiet: bool = False) -> None:
        await until_it_works(self._store.clock, functools.partial(self._write_once, quiet=quiet))

    async def _write_once(self, *, kind: str = "job.state", quiet: bool = False) -> None:
        async with self._writing:
            ctx = self.ctx
            # The result too: a controller that picks the job up ends it with what earlier steps found.
            self._set(progress=ctx.fraction, message=ctx.message, waits_for=ctx.waiting, result=ctx.result)
            job = self.job
            self._stale = False
            async with self._store.transaction() as tx:
                data = json.dumps(ctx.data)
                await tx.jobs.save(JobRecord(job, ctx.data, self._attempt))
                if not quiet:
                    facts = {"job": job.id, "kind": job.kind, "state": job.state.value, "step": ctx.step}
                    await tx.emit(kind, job.target, job.id, event_message(job), **facts)
            self._durable, self._durable_state = data, job.state


def event_message(job: Job) -> str:
    """What an event says of a job: which it is, how it stands, and what is to be said of that."""
    waits = f"waits for {job.waits_for}" if job.waits_for else ""
    detail = job.error.sentence() if job.error and job.state.ended else job.message or waits
    return f"{job.kind} {job.id} is {job.state}" + (f": {detail}" if detail else "")
