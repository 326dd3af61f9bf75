"""What happens to a job, on its record: pure functions from one `Job` to the next, and why a job ends as failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from serai.controller.jobs.workflow import Step
from serai.schema import job as schema
from serai.schema.errors import ErrorInfo, InterruptedByRestartError, SeraiError
from serai.schema.job import Job, StepState

Steps = Sequence[Step[Any, Any]]


def recorded(steps: Steps, now: datetime) -> list[schema.Step]:
    """The steps of a new job: what was written with it is done."""
    return [
        schema.Step(name=step.name)
        if step.run is not None
        else schema.Step(name=step.name, state=StepState.DONE, started=now, ended=now)
        for step in steps
    ]


def committed(steps: Steps, job: Job) -> bool:
    """Whether the job is past its point of no return: nothing of it is undone any more."""
    pairs = zip(steps, job.steps, strict=True)
    return any(step.point_of_no_return and seen.state is StepState.DONE for step, seen in pairs)


def with_step(job: Job, index: int, state: StepState, now: datetime, detail: str = "") -> Job:
    """One step is in another state since now."""
    steps = list(job.steps)
    running = state is StepState.RUNNING
    times = {"started": now if running else steps[index].started, "ended": None if running else now}
    steps[index] = steps[index].model_copy(update={"state": state, "detail": detail, **times})
    return job.model_copy(update={"steps": steps})


def without_pending(job: Job, now: datetime) -> Job:
    """What has not begun never will."""
    for index, step in enumerate(job.steps):
        if step.state is StepState.PENDING:
            job = with_step(job, index, StepState.SKIPPED, now)
    return job


def fault(steps: Steps, job: Job, error: BaseException) -> ErrorInfo:
    """Why a job ends whose own task failed, which is a fault of ours; `job`: as it is when nothing more is undone."""
    begun = (StepState.DONE, StepState.RUNNING)
    left = [seen.name for step, seen in zip(steps, job.steps, strict=True) if step.undo and seen.state in begun]
    told = (
        f"What its steps {', '.join(left)} did is not undone: look at {job.target}" if left else "Nothing of it is left"
    )
    if committed(steps, job):
        told = f"It was past the point where it could be undone: look at {job.target}"
    return SeraiError(
        f"a fault in the controller ended the job: {type(error).__name__}: {error}",
        field="job",
        value=job.id,
        remedy=f"{told}. The controller's log has the details; please report it.",
    ).info


def outdated(steps: Steps, job: Job, why: str) -> ErrorInfo:
    """Why a job ends that this version of Serai cannot go on with; `steps`: with the undos that it knows."""
    unbegun = (StepState.PENDING, StepState.SKIPPED)
    begun = [step for step, seen in zip(steps, job.steps, strict=True) if seen.state not in unbegun]
    left = ", ".join(step.name for step in begun if step.undo is None)
    told = "what it had done is undone" + (f", but for its steps {left}" if left else "")
    if not begun:
        told = "it had done nothing yet"
    if committed(steps, job):
        told = "it was past the point where it could be undone, and was not finished"
    return InterruptedByRestartError(
        f"the job was begun by another version of Serai ({why}): {told}",
        field="kind",
        value=job.kind,
        remedy=f"Look at what is there ({job.target}), and ask for it again if it is still wanted.",
    ).info
