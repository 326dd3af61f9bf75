"""What happens to a job, written on its record: pure functions from one `Job` to the next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from serai.controller.jobs import StepDef
from serai.schema.errors import ErrorInfo, SeraiError
from serai.schema.job import Job, StepState


def committed(steps: Sequence[StepDef], job: Job) -> bool:
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


def fault(steps: Sequence[StepDef], job: Job, error: BaseException) -> ErrorInfo:
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
