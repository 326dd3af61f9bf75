"""One job at work: forward through its steps, or back through their undos. The rules are in `jobs.py`.

The end of one step and the beginning of the next are one write: nothing lies between them.

A database that cannot be used for a while ends no job: it waits, and a step in which that happened is picked up as
after a crash of the controller, from what was written last.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Protocol

from serai.controller import marks
from serai.controller.account import RETRY_FIRST, Account
from serai.controller.commands import CommandSender
from serai.controller.jobs import StepDef, Workflow
from serai.controller.locks import Locks, Request
from serai.controller.store import JobRecord, Store, StoreUnavailableError
from serai.lib.tasks import Tasks
from serai.schema.errors import (
    CancelledByUserError,
    ConflictError,
    ErrorInfo,
    InterruptedByRestartError,
    SeraiError,
)
from serai.schema.job import Job, JobState, StepState

log = logging.getLogger(__name__)

RETRY_MOST = 30.0
"""Seconds between two attempts of an undo, or of a step behind the point of no return."""

UNDONE_FROM = (StepState.DONE, StepState.RUNNING, StepState.FAILED)


class Directory(Protocol):
    """Where a run looks up the other jobs, to name them."""

    def describe(self, job_id: str) -> str:
        """`job 12ab… (vm.migrate of vm/web1)`."""
        ...

    async def give_way(self, job_id: str, kinds: Sequence[str]) -> bool:
        """See `Engine.give_way`."""
        ...


class Run(Account):
    """One job from its locks to its end."""

    def __init__(
        self,
        record: JobRecord,
        workflow: Workflow,
        *,
        store: Store,
        hosts: CommandSender,
        locks: Locks,
        directory: Directory,
        tasks: Tasks,
    ) -> None:
        super().__init__(record, workflow, store=store, hosts=hosts, tasks=tasks)
        self._locks = locks
        self._directory = directory
        # Asked for before anything is awaited: the order of the queue is the order in which jobs were submitted.
        self._wish: Request = locks.request(record.job.id, workflow.locks(record.job))

    async def go(self) -> None:
        """Run it to its end."""
        try:
            if await self._wait_for_locks():
                await self._forward_or_back()
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # else it was something inside a step that was cancelled, not this run
            log.error("job %s (%s of %s) met a fault", self.job.id, self.job.kind, self.job.target, exc_info=error)
            await self._bail_out(error)
        finally:
            self._locks.release(self._wish)

    async def cancel(self) -> Job:
        """Ask it to stop. Raises ConflictError behind the point of no return, StoreUnavailableError.

        It stops also if that could not be written, but nobody is told so who could not rely on it.
        """
        unwritten = self.job.state is JobState.CANCELLING and self._durable_state is not JobState.CANCELLING
        if unwritten or self.job.state in (JobState.QUEUED, JobState.RUNNING):
            if self._committed():
                raise ConflictError(
                    "it is too late to cancel: what is left only clears up",
                    field="job",
                    value=self.job.id,
                    remedy="Wait for its end.",
                )
            self._set(state=JobState.CANCELLING)
            self.ctx.cancelled.set()
            await self._write_once()
        return self.job

    async def give_way(self) -> bool:
        """Stop, since another job does not want to wait for it; False if it is too late for that."""
        if self.workflow.hurries:
            self.ctx.hurried.set()
        elif self._committed():
            return False
        else:
            await self.cancel()
        return True

    # --- the way ---

    async def _wait_for_locks(self) -> bool:
        if self._wish.granted.is_set():
            return True
        granted = asyncio.ensure_future(self._wish.granted.wait())
        cancelled = asyncio.ensure_future(self.ctx.cancelled.wait())
        fresh = self.job.started is None
        try:
            while not granted.done():
                if fresh and self.ctx.cancelled.is_set():
                    error = CancelledByUserError("cancelled before it began").info
                    if not any(step.written for step in self.workflow.steps):
                        self._skip_pending()
                        await self._end(JobState.CANCELLED, error)
                        return False
                    # What was written with it is taken back when nobody else is at work there.
                    fresh = False
                    self._set(state=JobState.UNDOING, error=error)
                    await self._write()
                self.ctx.waits_for(await self._clear_the_way())
                waits = {granted, cancelled} if fresh else {granted}
                await asyncio.wait(waits, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        finally:
            granted.cancel()
            cancelled.cancel()
        self.ctx.waiting = ""
        return True

    async def _clear_the_way(self) -> str:
        """Ask those that it overtakes to give way; returns whom it waits for, in words."""
        kinds = self.workflow.overtakes(self.job)
        asked = {job for job in self._locks.ahead(self._wish) if await self._directory.give_way(job, kinds)}
        return "; ".join(
            f"{name}: {self._directory.describe(job)}" + (", which was asked to stop" if job in asked else "")
            for name, job in self._locks.blockers(self._wish).items()
        )

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
                self._set(state=JobState.UNDOING, error=_explain(self.job, error))
                self._keep_sound_data()
            else:
                await self._end(JobState.DONE, None)
                return
        await self._back()
        error_info = self.job.error
        cancelled = error_info is not None and error_info.code == CancelledByUserError.code
        await self._end(JobState.CANCELLED if cancelled else JobState.FAILED, error_info)

    async def _forward(self) -> None:
        state = JobState.CANCELLING if self.ctx.cancelled.is_set() else JobState.RUNNING
        self._set(state=state, started=self.job.started or self._store.clock.now())
        for index, step in enumerate(self.workflow.steps):
            found = self.job.steps[index].state
            if found is StepState.DONE:
                continue
            self.ctx.begin(
                step.name,
                cancellable=step.cancellable and not self._committed(),
                undoing=False,
                attempt=self._attempt,
            )
            begun = found is StepState.RUNNING
            if not begun:
                self.ctx.check_cancel()
                self._step(index, StepState.RUNNING)
                await self._write()
            await self._run_step(index, step, begun=begun)
            self._step(index, StepState.DONE)

    async def _pick_up(self, step: StepDef) -> bool:
        """After a crash in mid-step: True if the step is done, False if it is to be run again; raises to undo."""
        if step.resume is not None and not step.repeatable:
            if await step.resume(self.ctx):
                return True
        elif step.repeatable:
            return False
        raise InterruptedByRestartError(
            f"the controller was restarted in step {step.name!r}, which cannot be repeated",
            field="step",
            value=step.name,
            remedy="What the job had done was undone. Ask for it again.",
        )

    async def _run_step(self, index: int, step: StepDef, *, begun: bool) -> None:
        delay = RETRY_FIRST
        while True:
            try:
                if not begun or not await self._pick_up(step):
                    await step.run(self.ctx)
                json.dumps(self.ctx.result)
                self._kept = json.dumps(self.ctx.data)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if isinstance(error, StoreUnavailableError) and (step.repeatable or step.resume is not None):
                    begun = True
                    await self._as_after_a_crash(delay)
                    self.ctx.begin(step.name, cancellable=self.ctx.cancellable, undoing=False, attempt=self._attempt)
                    delay = min(delay * 2, RETRY_MOST)
                    continue
                if not self._committed():
                    self._step(index, StepState.FAILED, str(error))
                    raise
                log.warning("job %s, step %s fails and is tried again: %s", self.job.id, step.name, error)
                await self._pause(f"step {step.name!r} to succeed: {error}", delay)
                delay = min(delay * 2, RETRY_MOST)
                self.ctx.begin(step.name, cancellable=False, undoing=False, attempt=self._attempt)
            else:
                return

    async def _back(self) -> None:
        self._skip_pending()
        await self._write()
        for index in reversed(range(len(self.workflow.steps))):
            step = self.workflow.steps[index]
            state = self.job.steps[index].state
            if step.undo is None or state not in UNDONE_FROM:
                continue
            await self._undo_step(step)
            if state is not StepState.FAILED:
                self._step(index, StepState.UNDONE)
            await self._write()

    async def _undo_step(self, step: StepDef) -> None:
        assert step.undo is not None
        delay = RETRY_FIRST
        while True:
            self.ctx.begin(step.name, cancellable=False, undoing=True, attempt=self._attempt)
            try:
                await step.undo(self.ctx)
                self._kept = json.dumps(self.ctx.data)
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
        self._attempt += 1
        self.ctx.waits_for(reason)
        await self._write()
        await self._store.clock.sleep(delay)

    async def _as_after_a_crash(self, delay: float) -> None:
        """Wait for the database; what the step has in mind since the last write is forgotten, and asked for anew."""
        self.ctx.data = json.loads(self._durable)
        await self._store.clock.sleep(delay)
        await self._write(quiet=True)

    async def _bail_out(self, error: BaseException) -> None:
        """A fault of ours, or of the workflow outside its steps: undo what can be undone, and end as failed."""
        if self.job.state.ended:
            raise error  # it is the end that cannot be written as it is
        if self._wish.granted.is_set() and not self._committed():
            self._set(state=JobState.UNDOING, error=marks.fault(self.workflow.steps, self.job, error))
            self._keep_sound_data()
            await self._back()
        await self._end(JobState.FAILED, marks.fault(self.workflow.steps, self.job, error))


def _explain(job: Job, error: Exception) -> ErrorInfo:
    if isinstance(error, SeraiError):
        log.info("job %s (%s of %s): %s", job.id, job.kind, job.target, error)
        return error.info
    log.error("job %s (%s of %s) failed", job.id, job.kind, job.target, exc_info=error)
    return SeraiError(f"{type(error).__name__}: {error}").info
