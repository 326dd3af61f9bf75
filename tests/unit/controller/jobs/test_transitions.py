"""A job's record from one state to the next, and why a job ends as failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.controller.jobs.conftest import Asked, Context, Notes

from serai.controller.jobs import transitions
from serai.controller.jobs.workflow import Step, written
from serai.schema.ids import JobId
from serai.schema.job import Job, StepState

THEN = datetime(2026, 1, 1, tzinfo=UTC)
LATER = THEN + timedelta(seconds=5)


async def act(ctx: Context) -> None:
    """Never called here."""


STEPS: tuple[Step[Asked, Notes], ...] = (
    written("spec", act),
    Step("one", act, undo=act),
    Step("two", act, point_of_no_return=True),
    Step("three", act, repeatable=True),
)


def job(*states: StepState) -> Job:
    made = Job(
        id=JobId("a" * 12),
        kind="k",
        target="vm/web1",
        requested_by="test",
        created=THEN,
        steps=transitions.recorded(STEPS, THEN),
    )
    for index, state in enumerate(states):
        made = transitions.with_step(made, index, state, THEN)
    return made


def test_what_was_written_with_a_job_is_done_from_the_beginning() -> None:
    spec, one = job().steps[:2]
    assert (spec.state, spec.started, spec.ended) == (StepState.DONE, THEN, THEN)
    assert (one.state, one.started, one.ended) == (StepState.PENDING, None, None)


def test_a_step_keeps_when_it_began_and_gets_when_it_ended() -> None:
    running = transitions.with_step(job(), 1, StepState.RUNNING, THEN)
    failed = transitions.with_step(running, 1, StepState.FAILED, LATER, "full")
    assert (running.steps[1].started, running.steps[1].ended) == (THEN, None)
    step = failed.steps[1]
    assert (step.state, step.started, step.ended, step.detail) == (StepState.FAILED, THEN, LATER, "full")
    assert failed.steps[2:] == job().steps[2:]


def test_what_has_not_begun_is_skipped() -> None:
    found = transitions.without_pending(job(StepState.DONE, StepState.FAILED), LATER)
    assert [step.state for step in found.steps] == [
        StepState.DONE,
        StepState.FAILED,
        StepState.SKIPPED,
        StepState.SKIPPED,
    ]


@pytest.mark.parametrize(
    ("states", "committed"),
    [
        ([StepState.DONE, StepState.DONE, StepState.RUNNING], False),
        ([StepState.DONE, StepState.DONE, StepState.DONE], True),
    ],
)
def test_a_job_is_committed_once_its_point_of_no_return_is_done(states: list[StepState], committed: bool) -> None:
    assert transitions.committed(STEPS, job(*states)) is committed


D, R, U = StepState.DONE, StepState.RUNNING, StepState.UNDONE


@pytest.mark.parametrize(
    ("states", "fault", "outdated"),
    [
        ([U, U], "Nothing of it is left", "what it had done is undone"),
        ([D, R], "What its steps spec, one did is not undone: look at vm/web1", "what it had done is undone"),
        ([D, D, R], "What its steps spec, one did is not undone", "undone, but for its steps two"),
        ([D, D, D], "past the point where it could be undone", "past the point where it could be undone"),
    ],
)
def test_an_error_says_what_is_left(states: list[Any], fault: str, outdated: str) -> None:
    found = transitions.fault(STEPS, job(*states), KeyError("x"))
    assert "KeyError: 'x'" in found.message
    assert fault in (found.remedy or "")
    assert outdated in transitions.outdated(STEPS, job(*states), "other steps").message


def test_an_outdated_job_that_never_began_says_so() -> None:
    steps = STEPS[1:]
    fresh = job().model_copy(update={"steps": transitions.recorded(steps, THEN)})
    assert "it had done nothing yet" in transitions.outdated(steps, fresh, "other steps").message
