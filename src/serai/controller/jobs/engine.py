"""The engine: takes jobs in, runs each as a task of its own, and picks up after a crash what had not ended.

A job is submitted inside the transaction that writes the desired state, and starts the moment that is committed: no
polling in between. A job whose task dies, of a fault of ours, is ended as failed. Jobs that run are this process's; a
second controller must stand by until the first is gone.

A job that another version of Serai began, or whose record is not understood, cannot go on: its next step is not known.
It is undone by the steps that have the names of the recorded ones, and ends as failed. Where its params or its state
are not understood nothing can be undone, and the error says what is left.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from serai.controller.commands import CommandSender
from serai.controller.jobs import transitions
from serai.controller.jobs.locks import Locks
from serai.controller.jobs.runner import Runner
from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, ParamsT, Services, Step, Workflow
from serai.controller.jobs.writer import StateT, Writer, announce
from serai.controller.store import JobRecord, Store, Transaction, until_it_works
from serai.lib.ids import new_id
from serai.lib.tasks import Tasks
from serai.schema.errors import ConflictError, SeraiError, UnsupportedError
from serai.schema.ids import JobId
from serai.schema.job import Job, JobState
from serai.schema.resource import Frozen

log = logging.getLogger(__name__)

NOTHING = Workflow("", NoState, NoState, ())
"""Stands for a workflow of which nothing is known."""


class Engine:
    """See the module's text. `workflows` is read whenever a job comes in."""

    def __init__(
        self, store: Store, hosts: CommandSender, workflows: Mapping[str, Workflow[Any, Any]], services: Services
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._workflows = workflows
        self._services = services
        self._locks = Locks()
        self._runners: dict[str, Runner] = {}
        self._tasks = Tasks("jobs")
        self._started = False

    async def start(self) -> None:
        """Pick up every job that has not ended: first those that had begun, since they hold their locks."""
        async with self._store.read() as view:
            records = await view.jobs.unfinished()
        self._started = True
        for record in sorted(records, key=lambda found: found.job.started is None):
            if record.job.id not in self._runners:
                log.info("picking up job %s (%s of %s)", record.job.id, record.job.kind, record.job.target)
                self._pick_up(record)

    async def stop(self) -> None:
        """Leave all jobs where they are; the next start picks them up."""
        await self._tasks.close()
        self._runners.clear()

    async def submit(
        self,
        tx: Transaction,
        workflow: Workflow[ParamsT, StateT],
        target: str,
        target_id: str | None,
        params: ParamsT,
        state: StateT | None = None,
        *,
        requested_by: str,
        reason: str = "",
    ) -> Job:
        """Write a job as part of `tx`; it starts once that is committed. Raises UnsupportedError.

        `target`: the resource, as `vm/web1`. `state`: the workflow's memory to begin with, if not an empty one.
        """
        if workflow.kind not in self._workflows:
            raise UnsupportedError(
                f"this controller has no workflow {workflow.kind}", field="kind", value=workflow.kind
            )
        workflow = self._workflows[workflow.kind]
        job = Job(
            id=new_id(JobId),
            kind=workflow.kind,
            target=target,
            target_id=target_id,
            requested_by=requested_by,
            reason=reason,
            params=params.model_dump(mode="json"),
            steps=transitions.recorded(workflow.steps, tx.now),
            created=tx.now,
        )
        memory = workflow.state() if state is None else state
        record = JobRecord(job, memory.model_dump_json(), workflow.version)
        await tx.jobs.insert(record)
        await announce(tx, job)
        tx.on_commit(lambda: self._launch(record, workflow, params, memory))
        return job

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop and undo. Raises NotFoundError, and ConflictError if it has ended or is past undoing."""
        runner = self._runners.get(job_id)
        if runner is not None and not runner.job.state.ended:
            return await runner.cancel()
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

    def _pick_up(self, record: JobRecord) -> None:
        job, workflow = record.job, self._workflows.get(record.job.kind)
        if workflow is None:
            self._only_undo(record, f"this one has no {job.kind}")
            return
        try:
            params = workflow.params.model_validate(job.params)
            state = workflow.state.model_validate_json(record.memory)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            self._only_undo(record, f"what it remembers is not understood: {error.title} {field}: {first['msg']}")
            return
        known = [step.name for step in workflow.steps] == [step.name for step in job.steps]
        if known and record.version == workflow.version:
            self._launch(record, workflow, params, state, picked_up=True)
        else:
            self._only_undo(record, f"its {job.kind} has other steps", workflow, params, state)

    def _only_undo(
        self,
        record: JobRecord,
        why: str,
        workflow: Workflow[Any, Any] = NOTHING,
        params: Frozen = NoState(),
        state: Frozen = NoState(),
    ) -> None:
        job, known = record.job, {step.name: step for step in workflow.steps}
        steps = [_lenient(known.get(seen.name) or Step(seen.name, None)) for seen in job.steps]
        error = job.error or transitions.outdated(steps, job, why)
        log.error("job %s (%s of %s): %s", job.id, job.kind, job.target, error.message)
        changed = job.model_copy(update={"state": JobState.UNDOING, "error": error})
        self._launch(replace(record, job=changed), replace(workflow, steps=steps), params, state, picked_up=True)

    def _launch(
        self,
        record: JobRecord,
        workflow: Workflow[ParamsT, StateT],
        params: ParamsT,
        state: StateT,
        *,
        picked_up: bool = False,
    ) -> None:
        # If not now, `start` finds it in the store.
        if not self._started or self._tasks.closed:
            return
        try:
            self._run(record, workflow, params, state, picked_up=picked_up)
        except Exception as error:
            log.exception("job %s (%s of %s) cannot be started", record.job.id, record.job.kind, record.job.target)
            self._tasks.start(self._bury(record.job.id, workflow, error), f"bury-{record.job.id}")

    def _run(
        self,
        record: JobRecord,
        workflow: Workflow[ParamsT, StateT],
        params: ParamsT,
        state: StateT,
        *,
        picked_up: bool,
    ) -> None:
        writer = Writer(record, state, self._store, self._tasks)
        runner = Runner(
            workflow,
            writer,
            JobContext(params, writer, self._store, self._hosts, self._services),
            clock=self._store.clock,
            locks=self._locks,
            others=self._runners,
            picked_up=picked_up,
        )
        self._runners[record.job.id] = runner
        task = self._tasks.start(runner.run(), f"job-{record.job.id}")
        task.add_done_callback(functools.partial(self._over, record.job.id, workflow))

    def _over(self, job_id: str, workflow: Workflow[Any, Any], task: asyncio.Task[None]) -> None:
        self._runners.pop(job_id, None)
        if self._tasks.closed:
            return
        error = asyncio.CancelledError("its task was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self._tasks.start(self._bury(job_id, workflow, error), f"bury-{job_id}")

    async def _bury(self, job_id: str, workflow: Workflow[Any, Any], error: BaseException) -> None:
        """Nothing works at the job any more: say so in its record, and why, instead of `running` for ever."""

        async def write() -> None:
            async with self._store.transaction() as tx:
                record = await tx.jobs.record(job_id)
                if record.job.state.ended:
                    return
                info = transitions.fault(workflow.steps, record.job, error)
                end = {"state": JobState.FAILED, "error": info, "ended": tx.now, "result": None, "waits_for": ""}
                job = record.job.model_copy(update=end)
                await tx.jobs.save(replace(record, job=job))
                await announce(tx, job)

        await until_it_works(self._store.clock, write)


def _lenient(step: Step[Any, Any]) -> Step[Any, Any]:
    """The step with an undo that gives up if it does not understand what another version of Serai did."""
    given = step.undo
    if given is None:
        return step

    async def undo(ctx: AnyContext) -> None:
        try:
            await given(ctx)
        except SeraiError:
            raise
        except Exception:
            log.exception("job %s: the undo of step %s does not fit what another version did", ctx.id, step.name)

    return replace(step, undo=undo)
