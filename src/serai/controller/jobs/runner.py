"""One job at work: forward through its steps, or back through their undos. The rules are in `workflow.py`.

The end of one step and the beginning of the next are one write: nothing lies between them.

A database that cannot be used for a while ends no job: it waits, and a step in which that happened is picked up as
after a crash of the controller, from what was written last.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from serai.controller.jobs import transitions
from serai.controller.jobs.locks import Locks
from serai.controller.jobs.workflow import JobContext, Step, Workflow
from serai.controller.jobs.writer import Writer
from serai.controller.store import StoreUnavailableError, until_it_works
from serai.lib.clock import Clock
from serai.schema.errors import (
    CancelledByUserError,
    ConflictError,
    ErrorInfo,
    InterruptedByRestartError,
    SeraiError,
)
from serai.schema.ids import VmId
from serai.schema.job import Job, JobState, StepState

log = logging.getLogger(__name__)

RETRY_FIRST = 0.5
"""Seconds before the second attempt of an undo, or of a step behind the point of no return."""
RETRY_MOST = 30.0
"""Seconds between two attempts later."""

UNDONE_FROM = (StepState.DONE, StepState.RUNNING, StepState.FAILED)


class Runner:
    """Takes one job from its locks to its end. `others` are all jobs at work, by id.

    `picked_up`: it is from an earlier run of the controller, whose database may have been another one.
    """

    def __init__(
        self,
        workflow: Workflow[Any, Any],
        record: Writer[Any],
        ctx: JobContext[Any, Any],
        *,
        clock: Clock,
        locks: Locks,
        others: Mapping[str, Runner],
        picked_up: bool = False,
    ) -> None:
        self._workflow = workflow
        self._record = record
        self._ctx = ctx
        self._clock = clock
        self._locks = locks
        self._others = others
        self._picked_up = picked_up
        # Asked for before anything is awaited: the order of the queue is the order in which jobs were submitted.
        self._request = locks.request(record.job.id, workflow.locks(record.job, ctx.params))
        if record.job.state is JobState.CANCELLING:
            ctx.cancelled.set()

    @property
    def job(self) -> Job:
        """The job as it is now."""
        return self._record.job

    async def run(self) -> None:
        """Run it to its end."""
        try:
            if await self._wait_for_locks() and not await self._ended_by_restore():
                await self._forward_or_back()
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # else it was something inside a step that was cancelled, not this task
            log.error("job %s (%s of %s) met a fault", self.job.id, self.job.kind, self.job.target, exc_info=error)
            await self._bail_out(error)
        finally:
            self._locks.release(self._request)

    async def cancel(self) -> Job:
        """Ask it to stop. Raises ConflictError behind the point of no return, StoreUnavailableError.

        It stops also if that could not be written, but the caller, who could not rely on it, gets the error.
        """
        unwritten = self.job.state is JobState.CANCELLING and self._record.durable is not JobState.CANCELLING
        if unwritten or self.job.state in (JobState.QUEUED, JobState.RUNNING):
            if self._committed():
                raise ConflictError(
                    "it is too late to cancel: what is left only clears up",
                    field="job",
                    value=self.job.id,
                    remedy="Wait for its end.",
                )
            self._record.update(state=JobState.CANCELLING)
            self._ctx.cancelled.set()
            await self._record.write_once()
        return self.job

    async def preempt(self) -> bool:
        """Stop, since another job does not wait for this one; False if it is too late for that."""
        if self._workflow.expedites:
            self._ctx.expedited.set()
        elif self._committed():
            return False
        else:
            await self.cancel()
        return True

    # --- the way ---

    async def _wait_for_locks(self) -> bool:
        if self._request.granted.is_set():
            return True
        granted = asyncio.ensure_future(self._request.granted.wait())
        cancelled = asyncio.ensure_future(self._ctx.cancelled.wait())
        fresh = self.job.started is None
        try:
            while not granted.done():
                if fresh and self._ctx.cancelled.is_set():
                    error = CancelledByUserError("cancelled before it began").info
                    if all(step.run is not None for step in self._workflow.steps):
                        self._skip_pending()
                        await self._end(JobState.CANCELLED, error)
                        return False
                    # What was written with it is taken back once no other job is at work there.
                    fresh = False
                    self._record.update(state=JobState.UNDOING, error=error)
                    await self._record.write()
                self._ctx.waits_for(await self._clear_the_way())
                waits = {granted, cancelled} if fresh else {granted}
                await asyncio.wait(waits, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        finally:
            granted.cancel()
            cancelled.cancel()
        self._record.update(waits_for="")
        return True

    async def _ended_by_restore(self) -> bool:
        """End a job whose record came back with a backup: what it did then has ended long ago, one way or the other.

        To go on could begin anew what is done, and to undo could delete what is in use. Whether the database was
        restored is known once the hosts of the job's VM have reported.
        """
        if not self._picked_up or self._workflow.outlives_restore:
            return False
        noun, target = self.job.target.partition("/")[0], self.job.target_id
        if noun == "vm" and target is not None:
            self._ctx.cancellable = False
            vm = VmId(target)
            await until_it_works(self._clock, lambda: self._ctx.await_reports(vm))
        if not self._ctx.rights.found_restored:
            return False
        error = InterruptedByRestartError(
            "the database was restored from a backup; nothing is undone",
            field="job",
            value=self.job.id,
            remedy="See what there is, and ask for it again if it is missing.",
        )
        self._skip_pending()
        await self._end(JobState.FAILED, error.info)
        return True

    async def _clear_the_way(self) -> str:
        """Ask the jobs that it preempts to stop; returns what it waits for, in words."""
        kinds = self._workflow.preempts(self._ctx.params)
        asked = set()
        for job_id in self._locks.ahead(self._request):
            other = self._others.get(job_id)
            if other is not None and other.job.kind in kinds and await other.preempt():
                asked.add(job_id)
        told = []
        for name, job_id in self._locks.blockers(self._request).items():
            other = self._others.get(job_id)
            what = "" if other is None else f" ({other.job.kind} of {other.job.target})"
            told.append(f"{name}: job {job_id}{what}" + (", which was asked to stop" if job_id in asked else ""))
        return "; ".join(told)

    async def _forward_or_back(self) -> None:
        if self.job.state is not JobState.UNDOING:
            try:
                await self._forward()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if self._committed():
                    raise
                log.debug("job %s turns back", self.job.id, exc_info=error)
                self._turn_back(_explain(self.job, error))
            else:
                await self._end(JobState.DONE, None)
                return
        await self._back()
        error_info = self.job.error
        cancelled = error_info is not None and error_info.code == CancelledByUserError.code
        await self._end(JobState.CANCELLED if cancelled else JobState.FAILED, error_info)

    async def _forward(self) -> None:
        state = JobState.CANCELLING if self._ctx.cancelled.is_set() else JobState.RUNNING
        self._record.update(state=state, started=self.job.started or self._clock.now())
        for index, step in enumerate(self._workflow.steps):
            found = self.job.steps[index].state
            if found is StepState.DONE:
                continue
            self._ctx.begin(step.name, cancellable=step.cancellable and not self._committed(), undoing=False)
            begun = found is StepState.RUNNING
            if not begun:
                self._ctx.check_cancel()
                self._step(index, StepState.RUNNING)
                await self._record.write()
            await self._run_step(index, step, begun=begun)
            self._step(index, StepState.DONE)

    async def _pick_up(self, step: Step[Any, Any]) -> bool:
        """After a crash in mid-step: True if the step is done, False if it is to be run again; raises to undo."""
        if step.resume is not None and not step.repeatable:
            if await step.resume(self._ctx):
                return True
        elif step.repeatable:
            return False
        raise InterruptedByRestartError(
            f"the controller was restarted in step {step.name!r}, which cannot be repeated",
            field="step",
            value=step.name,
            remedy="What the job had done was undone. Ask for it again.",
        )

    async def _run_step(self, index: int, step: Step[Any, Any], *, begun: bool) -> None:
        assert step.run is not None, "what was written with the job is done"
        delay = RETRY_FIRST
        while True:
            try:
                if not begun or not await self._pick_up(step):
                    await step.run(self._ctx)
                json.dumps(self._ctx.result)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if isinstance(error, StoreUnavailableError) and (step.repeatable or step.resume is not None):
                    begun = True
                    await self._as_after_a_crash(delay)
                    self._ctx.begin(step.name, cancellable=self._ctx.cancellable, undoing=False)
                    delay = min(delay * 2, RETRY_MOST)
                    continue
                if not self._committed():
                    self._step(index, StepState.FAILED, str(error))
                    raise
                log.warning("job %s, step %s fails and is tried again: %s", self.job.id, step.name, error)
                await self._pause(f"step {step.name!r} to succeed: {error}", delay)
                delay = min(delay * 2, RETRY_MOST)
                self._ctx.begin(step.name, cancellable=False, undoing=False)
            else:
                return

    def _turn_back(self, error: ErrorInfo) -> None:
        # The result goes: the step may have left one that cannot be written.
        self._record.update(state=JobState.UNDOING, error=error, result=None)

    async def _back(self) -> None:
        self._skip_pending()
        await self._record.write()
        for index in reversed(range(len(self._workflow.steps))):
            step = self._workflow.steps[index]
            state = self.job.steps[index].state
            if step.undo is None or state not in UNDONE_FROM or self._committed():
                continue
            await self._undo_step(step)
            if state is not StepState.FAILED:
                self._step(index, StepState.UNDONE)
            await self._record.write()

    async def _undo_step(self, step: Step[Any, Any]) -> None:
        assert step.undo is not None
        delay = RETRY_FIRST
        while True:
            self._ctx.begin(step.name, cancellable=False, undoing=True)
            try:
                await step.undo(self._ctx)
            except asyncio.CancelledError:
                raise
            except StoreUnavailableError:
                await self._as_after_a_crash(delay)
                delay = min(delay * 2, RETRY_MOST)
            except Exception as error:
                log.warning("job %s, undo of %s fails and is tried again", self.job.id, step.name, exc_info=error)
                await self._pause(f"undo of step {step.name!r} to succeed: {error}", delay)
                delay = min(delay * 2, RETRY_MOST)
            else:
                return

    async def _pause(self, reason: str, delay: float) -> None:
        # A new attempt makes new command ids: under the old ones a host would only repeat its refusal.
        self._record.attempt += 1
        self._ctx.waits_for(reason)
        await self._record.write()
        await self._clock.sleep(delay)

    async def _as_after_a_crash(self, delay: float) -> None:
        """Wait for the database; what the step remembered since the last write is forgotten."""
        self._record.forget()
        await self._clock.sleep(delay)
        await self._record.write(quiet=True)

    async def _bail_out(self, error: BaseException) -> None:
        """A fault of ours, or of the workflow outside its steps: undo what can be undone, and end as failed."""
        if self.job.state.ended:
            raise error  # it is the end that cannot be written as it is
        if self._request.granted.is_set() and not self._committed():
            self._turn_back(transitions.fault(self._workflow.steps, self.job, error))
            await self._back()
        await self._end(JobState.FAILED, transitions.fault(self._workflow.steps, self.job, error))

    # --- the record ---

    def _committed(self) -> bool:
        return transitions.committed(self._workflow.steps, self.job)

    def _step(self, index: int, state: StepState, detail: str = "") -> None:
        self._record.job = transitions.with_step(self.job, index, state, self._clock.now(), detail)

    def _skip_pending(self) -> None:
        self._record.job = transitions.without_pending(self.job, self._clock.now())

    async def _end(self, state: JobState, error: ErrorInfo | None) -> None:
        self._record.update(state=state, error=error, ended=self._clock.now(), waits_for="")
        # A failed or cancelled job has no result; one that is done is at its end.
        self._record.update(**({"progress": 1.0} if state is JobState.DONE else {"result": None}))
        await self._record.write()


def _explain(job: Job, error: Exception) -> ErrorInfo:
    if isinstance(error, SeraiError):
        log.info("job %s (%s of %s): %s", job.id, job.kind, job.target, error)
        return error.info
    log.error("job %s (%s of %s) failed", job.id, job.kind, job.target, exc_info=error)
    return SeraiError(f"{type(error).__name__}: {error}").info
