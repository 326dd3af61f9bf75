"""The engine: how jobs come in, how soon they begin, and what becomes of those it cannot go on with."""

from __future__ import annotations

import statistics
import time

import pytest
from sqlalchemy import update
from tests.unit.controller.jobs.conftest import TARGET, Asked, Context, Kit, Log, Notes, states

from serai.controller.jobs.workflow import Step, Workflow
from serai.controller.store.tables import jobs
from serai.schema.errors import UnsupportedError
from serai.schema.job import JobState, StepState


async def test_an_unknown_kind_is_refused(kit: Kit) -> None:
    async with kit.store.transaction() as tx:
        with pytest.raises(UnsupportedError):
            await kit.engine.submit(
                tx, Workflow("none", Asked, Notes, ()), "vm/web1", TARGET, Asked(), requested_by="test"
            )


async def test_a_job_begins_at_once(kit: Kit) -> None:
    """The figure itself is bench's matter; here only that nothing polls: 20 jobs in far less than 20 periods."""
    begun: dict[str, float] = {}

    async def run(ctx: Context) -> None:
        begun[ctx.id] = time.perf_counter()

    kit.define("k", Step("one", run))
    waits = []
    for number in range(20):
        job = await kit.submit("k", f"{number:012x}")
        answered = time.perf_counter()
        await kit.ended(job)
        waits.append((begun[job.id] - answered) * 1000)
    print(f"answer to first step: median {statistics.median(waits):.2f} ms, max {max(waits):.2f} ms")


async def test_a_job_that_cannot_be_started_ends_as_failed(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), locks=lambda job, params: [job.params["no such"]])
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, log.lines) == (JobState.FAILED, [])
    assert job.error is not None
    assert "KeyError: 'no such'" in job.error.message


async def test_a_job_whose_task_dies_ends_as_failed(kit: Kit, log: Log) -> None:
    async def spoil(ctx: Context) -> None:
        ctx.progress(None, ["no", "text"])  # type: ignore[arg-type]  # what the store cannot write

    kit.define("k", log.step("one"), Step("two", spoil))
    job = await kit.ended(await kit.submit("k"))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.remedy is not None
    assert job.error.remedy.startswith("What its steps one did is not undone: look at vm/web1.")


async def test_a_job_of_another_version_is_undone_where_names_match_and_fails(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), log.step("gone"), log.step("two", hold=True), log.step("three"))
    job = await kit.submit("k")
    await log.reached.wait()
    kit.define("k", log.step("one"), log.step("other"), log.step("two"))
    await kit.restarted()
    ended = await kit.ended(job)
    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert ended.error.code == "interrupted"
    assert "another version" in ended.error.message
    assert "but for its steps gone" in ended.error.message
    assert log.lines == ["one", "gone", "two", "-two", "-one"]
    assert states(ended) == [StepState.UNDONE, StepState.DONE, StepState.UNDONE, StepState.SKIPPED]
    # It holds nothing any more.
    assert (await kit.ended(await kit.submit("k"))).state is JobState.DONE


async def test_a_job_of_a_kind_that_is_no_more_fails(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one", hold=True))
    job = await kit.submit("k")
    await log.reached.wait()
    del kit.workflows["k"]
    await kit.restarted()
    assert (await kit.ended(job)).state is JobState.FAILED
    assert log.lines == ["one"]


async def test_a_job_of_another_version_past_its_point_of_no_return_is_not_undone(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), log.step("two", point_of_no_return=True), log.step("three", hold=True))
    job = await kit.submit("k")
    await log.reached.wait()
    kit.define("k", log.step("one"), log.step("two", point_of_no_return=True), log.step("other"))
    await kit.restarted()
    ended = await kit.ended(job)
    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert "was not finished" in ended.error.message
    assert log.lines == ["one", "two", "three"]


async def test_an_undo_that_does_not_understand_another_versions_state_ends_all_the_same(kit: Kit, log: Log) -> None:
    async def undo(ctx: Context) -> None:
        raise KeyError("of the other version")

    kit.define("k", log.step("one", hold=True))
    job = await kit.submit("k")
    await log.reached.wait()
    kit.define("k", Step("one", log.step("one").run, undo=undo), log.step("two"))
    await kit.restarted()
    assert (await kit.ended(job)).state is JobState.FAILED


async def test_a_job_of_another_version_with_the_same_steps_is_undone_and_fails(kit: Kit, log: Log) -> None:
    steps = log.step("one"), log.step("two", hold=True, repeatable=True)
    kit.define("k", *steps)
    job = await kit.submit("k")
    await log.reached.wait()
    kit.define("k", *steps, version=2)
    await kit.restarted()
    ended = await kit.ended(job)
    assert (ended.state, log.lines) == (JobState.FAILED, ["one", "two", "-two", "-one"])


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("memory", '{"before": "password", "seen": []}', "Notes before: Input should be a valid integer"),
        ("memory", "no JSON", "Notes : Invalid JSON"),
        ("memory", '{"later": 1}', "Notes later: Extra inputs are not permitted"),
        ("params", {"vm": 7}, "Asked vm: Input should be a valid string"),
    ],
)
async def test_a_job_whose_record_is_not_understood_fails_and_says_what_is_left(
    kit: Kit, log: Log, column: str, value: str | dict[str, int], why: str
) -> None:
    kit.define("k", log.step("one"), log.step("two", hold=True, repeatable=True), log.step("three"))
    job = await kit.submit("k")
    await log.reached.wait()
    await kit.engine.stop()
    async with kit.store.transaction() as tx:
        await tx.connection.execute(update(jobs).where(jobs.c.id == job.id).values({column: value}))
    await kit.restarted()
    ended = await kit.ended(job)
    assert (ended.state, log.lines) == (JobState.FAILED, ["one", "two"])
    assert ended.error is not None
    assert why in ended.error.message
    assert "but for its steps one, two" in ended.error.message
    assert "password" not in ended.error.message
    # It holds nothing any more, and the engine works on.
    log.go_on.set()
    assert (await kit.ended(await kit.submit("k"))).state is JobState.DONE
