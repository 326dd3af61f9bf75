"""The engine: takes jobs in, runs each as a task of its own, and picks up after a crash what had not ended.

A job is submitted inside the transaction that writes the desired state, and starts the moment that is committed: no
polling in between. A job whose task dies, of a fault of ours, is ended as failed. Jobs that run are this process's; a
second controller must stand by until the first is gone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serai.controller import marks, outdated
from serai.controller.account import event_message
from serai.controller.commands import CommandSender
from serai.controller.jobs import Workflow
from serai.controller.locks import Locks
from serai.controller.run import Run
from serai.controller.store import JobRecord, Store, Transaction, until_it_works
from serai.lib.ids import new_id
from serai.lib.tasks import Tasks
from serai.schema.errors import ConflictError, UnsupportedError
from serai.schema.job import Job, JobState, Step, StepState

log = logging.getLogger(__name__)


class Engine:
    """See the module's text. `workflows` is read whenever a job comes in, so it may be filled until `start`."""

    def __init__(self, store: Store, hosts: CommandSender, workflows: Mapping[str, Workflow]) -> None:
        self._store = store
        self._hosts = hosts
        self._workflows = workflows
        self._locks = Locks()
        self._runs: dict[str, Run] = {}
        self._tasks = Tasks("jobs")
        self._started = False

    async def start(self) -> None:
        """Pick up every job that has not ended: first those that had begun, since they hold their locks."""
        async with self._store.read() as view:
            records = await view.jobs.unfinished()
        self._started = True
        for record in sorted(records, key=lambda found: found.job.started is None):
            if record.job.id in self._runs:
                continue
            workflow = self._workflows.get(record.job.kind)
            if not outdated.fits(workflow, record.job):
                log.error("job %s (%s) was begun by another version of Serai", record.job.id, record.job.kind)
                self._run(*outdated.only_to_undo(record, workflow))
                continue
            log.info("picking up job %s (%s of %s)", record.job.id, record.job.kind, record.job.target)
            self._launch(record)

    async def stop(self) -> None:
        """Leave all jobs where they are; the next start picks them up."""
        await self._tasks.close()
        self._runs.clear()

    async def submit(
        self,
        tx: Transaction,
        kind: str,
        target: str,
        target_id: str | None,
        params: Mapping[str, Any],
        *,
        requested_by: str,
        reason: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> Job:
        """Write a job as part of `tx`; it starts once that is committed. Raises UnsupportedError.

        `data`: the workflow's memory to begin with, JSON; unlike `params` it is shown to nobody.
        """
        workflow = self._workflows.get(kind)
        if workflow is None:
            raise UnsupportedError(f"this controller has no workflow {kind}", field="kind", value=kind)
        job = Job(
            id=new_id(),
            kind=kind,
            target=target,
            target_id=target_id,
            requested_by=requested_by,
            reason=reason,
            params=dict(params),
            steps=[
                Step(name=step.name, state=StepState.DONE, started=tx.now, ended=tx.now)
                if step.written
                else Step(name=step.name)
                for step in workflow.steps
            ],
            created=tx.now,
        )
        record = JobRecord(job, dict(data or {}))
        await tx.jobs.insert(record)
        facts = {"job": job.id, "kind": kind, "state": job.state.value, "step": ""}
        await tx.emit("job.state", target, job.id, event_message(job), **facts)
        tx.on_commit(lambda: self._launch(record))
        return job

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop and undo. Raises NotFoundError, and ConflictError if it has ended or is past undoing."""
        run = self._runs.get(job_id)
        if run is not None and not run.job.state.ended:
            return await run.cancel()
        async with self._store.read() as view:
            job = await view.jobs.get(job_id)
        if job.state.ended:
            raise ConflictError(
                f"the job has ended: it is {job.state}",
                field="job",
                value=job_id,
                remedy=f"Nothing of it is left to stop; see how it ended: serai job show {job_id}.",
            )
        return job

    def describe(self, job_id: str) -> str:
        """A job in words."""
        run = self._runs.get(job_id)
        return f"job {job_id}" if run is None else f"job {job_id} ({run.job.kind} of {run.job.target})"

    async def give_way(self, job_id: str, kinds: Sequence[str]) -> bool:
        """Ask a job to give way, if it is of these kinds; whether it does."""
        run = self._runs.get(job_id)
        return run is not None and run.job.kind in kinds and await run.give_way()

    def _launch(self, record: JobRecord) -> None:
        workflow = self._workflows.get(record.job.kind)
        # If not now, `start` finds it in the store.
        if workflow is None or not self._started or self._tasks.closed:
            return
        try:
            self._run(record, workflow)
        except Exception as error:
            log.exception("job %s (%s of %s) cannot be started", record.job.id, record.job.kind, record.job.target)
            self._tasks.start(self._bury(record.job.id, workflow, error), f"bury-{record.job.id}")

    def _run(self, record: JobRecord, workflow: Workflow) -> None:
        run = Run(
            record,
            workflow,
            store=self._store,
            hosts=self._hosts,
            locks=self._locks,
            directory=self,
            tasks=self._tasks,
        )
        self._runs[record.job.id] = run
        task = self._tasks.start(run.go(), f"job-{record.job.id}")
        task.add_done_callback(functools.partial(self._over, record.job.id, workflow))

    def _over(self, job_id: str, workflow: Workflow, task: asyncio.Task[None]) -> None:
        self._runs.pop(job_id, None)
        if self._tasks.closed:
            return
        error = asyncio.CancelledError("its task was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self._tasks.start(self._bury(job_id, workflow, error), f"bury-{job_id}")

    async def _bury(self, job_id: str, workflow: Workflow, error: BaseException) -> None:
        """Nobody works at the job any more: say so in its record, and why, instead of `running` for ever."""

        async def write() -> None:
            async with self._store.transaction() as tx:
                record = await tx.jobs.record(job_id)
                if record.job.state.ended:
                    return
                info = marks.fault(workflow.steps, record.job, error)
                end = {"state": JobState.FAILED, "error": info, "ended": tx.now, "result": None, "waits_for": ""}
                job = record.job.model_copy(update=end)
                await tx.jobs.save(replace(record, job=job))
                facts = {"job": job.id, "kind": job.kind, "state": job.state.value, "step": ""}
                await tx.emit("job.state", job.target, job.id, info.sentence(), **facts)

        await until_it_works(self._store.clock, write)
