"""Jobs that another version of Serai had begun, with other steps than this one's.

They cannot go on: nobody here knows what their next step would be. They are ended as failed, and what they had done is
undone as far as it is known how: a recorded step is undone by the step that has its name now. Where a job was past its
point of no return, nothing is undone. An undo that does not understand what the other version wrote is left out, with a
line in the log; one that fails for another reason (a host does not answer) is tried again, as always.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from serai.controller.jobs import JobContext, StepDef, StepRun, Workflow, target_lock
from serai.controller.store import JobRecord
from serai.schema.errors import InterruptedByRestartError, SeraiError
from serai.schema.job import Job, JobState, StepState

log = logging.getLogger(__name__)


def fits(workflow: Workflow | None, job: Job) -> bool:
    """The workflow has the very steps that the job was made with."""
    return workflow is not None and [step.name for step in workflow.steps] == [step.name for step in job.steps]


def only_to_undo(record: JobRecord, workflow: Workflow | None) -> tuple[JobRecord, Workflow]:
    """The job as one that undoes and then ends as failed, and a workflow of its own recorded steps for that.

    `workflow`: what the job's kind is now, if there is such a kind.
    """
    job = record.job
    now: Mapping[str, StepDef] = {step.name: step for step in workflow.steps} if workflow is not None else {}
    found = [now.get(step.name) for step in job.steps]
    past = any(
        step is not None and step.point_of_no_return and seen.state is StepState.DONE
        for step, seen in zip(found, job.steps, strict=True)
    )
    steps = [
        StepDef(seen.name, _never, undo=None if past or step is None or step.undo is None else _tolerant(step.undo))
        for step, seen in zip(found, job.steps, strict=True)
    ]
    error = job.error or _error(job, [step.name for step in steps if step.undo is None], past=past).info
    changed = job.model_copy(update={"state": JobState.UNDOING, "error": error})
    locks = target_lock(job) if workflow is None else _locks(workflow, job)
    return replace(record, job=changed), Workflow(job.kind, steps, lambda _: locks)


def _error(job: Job, kept: Sequence[str], *, past: bool) -> SeraiError:
    begun = [step.name for step in job.steps if step.state not in (StepState.PENDING, StepState.SKIPPED)]
    left = [name for name in begun if name in kept]
    undone = "nothing had been done yet" if not begun else "what it had done was undone"
    if past:
        undone = "it was past the point where it could be undone, and was not finished"
    elif left:
        undone = f"what it had done was undone, but for its steps {', '.join(left)}"
    return InterruptedByRestartError(
        f"the job was begun by another version of Serai, whose {job.kind} has other steps: {undone}",
        field="kind",
        value=job.kind,
        remedy=f"Look at what is there ({job.target}), and ask for it again if it is still wanted.",
    )


def _locks(workflow: Workflow, job: Job) -> Sequence[str]:
    try:
        return workflow.locks(job)
    except (LookupError, TypeError, ValueError):
        return target_lock(job)  # its parameters are another version's, too


def _tolerant(undo: StepRun) -> StepRun:
    async def run(ctx: JobContext) -> None:
        try:
            await undo(ctx)
        except (LookupError, TypeError, ValueError) as error:
            log.exception("job %s: undo of step %s does not fit what was recorded: %s", ctx.id, ctx.step, error)

    return run


async def _never(ctx: JobContext) -> None:
    raise AssertionError(f"step {ctx.step} of another version is undone, never run")
