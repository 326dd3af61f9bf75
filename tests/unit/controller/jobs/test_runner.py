"""One job's run: order, undo, cancel, locks, crashes, retries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.controller.jobs.conftest import TARGET, Context, Kit, Log, Notes, states

from serai.controller.jobs.workflow import Step, written
from serai.schema.errors import CapacityError, ConflictError
from serai.schema.job import JobState, StepState


async def do_nothing(ctx: Context) -> None:
    """A step that ends well."""


async def fails(ctx: Context) -> None:
    raise CapacityError("full")


async def test_steps_run_in_order_and_the_result_is_kept(kit: Kit, log: Log) -> None:
    async def last(ctx: Context) -> None:
        ctx.progress(0.5, "half")
        ctx.result = {"seen": ctx.state.seen, "vm": ctx.params.vm, "secret": ctx.secret.decode()}

    kit.define("k", log.step("one"), log.step("two"), Step("last", last))
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, job.result) == (
        JobState.DONE,
        {"seen": ["one", "two"], "vm": TARGET, "secret": "secret"},
    )
    assert job.params == {"vm": TARGET}
    assert states(job) == [StepState.DONE] * 3
    assert job.progress == 1.0
    assert job.started is not None
    assert job.ended is not None


async def test_a_failure_undoes_in_reverse_the_failed_step_too(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), log.step("two", fail=CapacityError("full", remedy="Wait.")), log.step("three"))
    job = await kit.ended(await kit.submit("k"))
    assert log.lines == ["one", "two", "-two", "-one"]
    assert states(job) == [StepState.UNDONE, StepState.FAILED, StepState.SKIPPED]
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.remedy) == ("capacity", "Wait.")


async def leaks(ctx: Context) -> None:
    """Waits for something that somebody else cancels."""
    inner = asyncio.get_running_loop().create_future()
    inner.cancel()
    await inner


async def test_a_job_whose_task_meets_a_fault_is_undone(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), Step("two", leaks), log.step("three"))
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, log.lines) == (JobState.FAILED, ["one", "-one"])
    assert job.error is not None
    assert job.error.message == "a fault in the controller ended the job: CancelledError: "
    assert job.error.remedy is not None
    assert job.error.remedy.startswith("Nothing of it is left.")
    assert (await kit.ended(await kit.submit("k"))).state is JobState.FAILED, "its locks were not given up"


async def test_a_fault_behind_the_point_of_no_return_undoes_nothing(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one", point_of_no_return=True), Step("two", leaks, repeatable=True))
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, log.lines) == (JobState.FAILED, ["one"])
    assert job.error is not None
    assert job.error.remedy is not None
    assert "past the point where it could be undone" in job.error.remedy


async def test_a_fault_of_ours_ends_the_job_with_its_text(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one", fail=KeyError("x")))
    job = await kit.ended(await kit.submit("k"))
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("internal", "KeyError: 'x'")


@pytest.mark.parametrize("wrong", [{"anything": object()}, {"before": "never"}, {"unknown": 1}])
async def test_a_state_that_its_model_refuses_fails_the_job_and_not_the_engine(
    kit: Kit, log: Log, wrong: dict[str, Any]
) -> None:
    async def bad(ctx: Context) -> None:
        ctx.remember(**wrong)

    kit.define("k", log.step("one"), Step("bad", bad))
    job = await kit.ended(await kit.submit("k"))
    assert job.state is JobState.FAILED
    assert log.lines == ["one", "-one"]


async def test_a_result_that_is_no_json_fails_the_job_and_not_the_engine(kit: Kit, log: Log) -> None:
    async def bad(ctx: Context) -> None:
        ctx.result = {"x": object()}

    kit.define("k", log.step("one"), Step("bad", bad))
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, job.result) == (JobState.FAILED, None)
    assert log.lines == ["one", "-one"]


async def test_cancel_takes_effect_at_the_next_point(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), log.step("two", hold=True), log.step("three"))
    job = await kit.submit("k")
    await log.reached.wait()
    assert (await kit.engine.cancel(job.id)).state is JobState.CANCELLING
    log.go_on.set()
    job = await kit.ended(job)
    assert job.state is JobState.CANCELLED
    assert log.lines == ["one", "two", "-two", "-one"]


async def test_behind_the_point_of_no_return_nothing_is_undone(kit: Kit, log: Log) -> None:
    tries: list[int] = []

    async def stubborn(ctx: Context) -> None:
        tries.append(ctx.attempt)
        if len(tries) == 1:
            log.reached.set()
            await log.go_on.wait()
        if len(tries) < 3:
            raise CapacityError("not yet")

    kit.define("k", log.step("switch", point_of_no_return=True), Step("settle", stubborn, repeatable=True))
    job = await kit.submit("k")
    await log.reached.wait()
    with pytest.raises(ConflictError, match="too late"):
        await kit.engine.cancel(job.id)
    log.go_on.set()
    job = await kit.ended(job)
    assert (job.state, log.lines) == (JobState.DONE, ["switch"])
    assert len(set(tries)) == 3


async def test_a_failing_undo_is_tried_again_and_says_so(kit: Kit, log: Log) -> None:
    mended = asyncio.Event()

    async def undo(ctx: Context) -> None:
        if not mended.is_set():
            raise CapacityError("the host is away")

    async def run(ctx: Context) -> None:
        raise CapacityError("full")

    kit.define("k", Step("one", run, undo=undo))
    job = await kit.submit("k")
    seen = await kit.seen(job, lambda now: "undo of step 'one'" in now.waits_for)
    assert "the host is away" in seen.waits_for
    mended.set()
    job = await kit.ended(job)
    assert (job.state, job.waits_for) == (JobState.FAILED, "")


async def test_a_second_job_queues_and_says_behind_which(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one", hold=True))
    first = await kit.submit("k")
    await log.reached.wait()
    second, other = await kit.submit("k"), await kit.submit("k", "bbbbbbbbbbbb")
    seen = await kit.seen(second, lambda now: bool(now.waits_for))
    assert first.id in seen.waits_for
    assert "vm/aaaaaaaaaaaa" in seen.waits_for
    await kit.seen(other, lambda now: now.state is JobState.RUNNING)
    third = await kit.submit("k")
    await kit.engine.cancel(third.id)
    assert (await kit.ended(third)).state is JobState.CANCELLED
    log.go_on.set()
    for job in (first, second, other):
        assert (await kit.ended(job)).state is JobState.DONE
    assert log.lines == ["one"] * 3


async def test_a_job_that_preempts_has_those_before_it_stop(kit: Kit, log: Log) -> None:
    async def finish(ctx: Context) -> None:
        await ctx.expedited.wait()
        log.lines.append("expedited")

    kit.define("move", log.step("one", hold=True))
    kit.define("kill", log.step("kill"), preempts=lambda _: ("move", "stop"))
    kit.define("stop", Step("stop", finish, cancellable=False), expedites=True)
    move, stop = await kit.submit("move"), await kit.submit("stop")
    other = await kit.submit("move")
    await log.reached.wait()
    kill = await kit.submit("kill")
    seen = await kit.seen(kill, lambda now: "which was asked to stop" in now.waits_for)
    assert move.id in seen.waits_for
    await kit.seen(move, lambda now: now.state is JobState.CANCELLING)
    log.go_on.set()
    assert (await kit.ended(kill)).state is JobState.DONE
    assert (await kit.ended(move)).state is JobState.CANCELLED
    assert (await kit.ended(stop)).state is JobState.DONE
    assert (await kit.ended(other)).state is JobState.CANCELLED
    assert log.lines == ["one", "-one", "expedited", "kill"]


async def test_what_is_past_its_point_of_no_return_is_not_preempted(kit: Kit, log: Log) -> None:
    kit.define("move", log.step("switch", point_of_no_return=True), log.step("settle", hold=True, repeatable=True))
    kit.define("kill", log.step("kill"), preempts=lambda _: ("move",))
    move = await kit.submit("move")
    await log.reached.wait()
    kill = await kit.submit("kill")
    seen = await kit.seen(kill, lambda now: bool(now.waits_for))
    assert "asked to stop" not in seen.waits_for
    log.go_on.set()
    for job in (move, kill):
        assert (await kit.ended(job)).state is JobState.DONE


@pytest.mark.parametrize("when", ["queued", "begun", "never"])
async def test_what_was_written_with_a_job_is_taken_back_unless_it_ends_well(kit: Kit, log: Log, when: str) -> None:
    """Also if it never began: once those that were there before it are done, and after a crash."""

    async def back(ctx: Context) -> None:
        log.lines.append(f"back to {ctx.state.before}")

    kit.define("ahead", log.step("one", hold=True, repeatable=True))
    kit.define("k", written("w", back), Step("two", do_nothing if when == "never" else fails))
    if when == "queued":
        ahead = await kit.submit("ahead")
        await log.reached.wait()
    job = await kit.submit("k", state=Notes(before=7))
    assert job.steps[0].state is StepState.DONE
    if when == "queued":
        await kit.engine.cancel(job.id)
        await kit.seen(job, lambda now: now.state is JobState.UNDOING and ahead.id in now.waits_for)
        await kit.restarted()
        log.go_on.set()
    ended = await kit.ended(job)
    wanted = {"queued": JobState.CANCELLED, "begun": JobState.FAILED, "never": JobState.DONE}[when]
    assert ended.state is wanted
    assert log.lines[-1:] == ([] if when == "never" else ["back to 7"])
    assert states(ended)[0] is (StepState.DONE if when == "never" else StepState.UNDONE)


@pytest.mark.parametrize(
    ("marks", "verdict", "lines", "state"),
    [
        ({"repeatable": True}, None, ["one", "two", "two"], JobState.DONE),
        ({}, None, ["one", "two", "-two", "-one"], JobState.FAILED),
        ({}, True, ["one", "two", "?"], JobState.DONE),
        ({}, False, ["one", "two", "?", "-two", "-one"], JobState.FAILED),
    ],
)
async def test_after_a_crash(
    kit: Kit, log: Log, marks: dict[str, Any], verdict: bool | None, lines: list[str], state: JobState
) -> None:
    async def resume(ctx: Context) -> bool:
        log.lines.append("?")
        assert ctx.state.seen == ["one"]
        return bool(verdict)

    if verdict is not None:
        marks = {**marks, "resume": resume}
    kit.define("k", log.step("one"), log.step("two", hold=True, **marks))
    job = await kit.submit("k")
    await log.reached.wait()
    log.go_on.set() if marks.get("repeatable") else None
    await kit.restarted()
    ended = await kit.ended(job)
    assert ended.state is state
    assert log.lines == lines
    if ended.error is not None:
        assert ended.error.code == "interrupted"
        assert "restarted in step 'two'" in ended.error.message
        assert ended.error.remedy


async def test_a_crash_while_undoing_goes_on_undoing(kit: Kit, log: Log) -> None:
    stuck, times = asyncio.Event(), [0]

    async def undo(ctx: Context) -> None:
        times[0] += 1
        if times[0] == 1:
            stuck.set()
            await asyncio.Event().wait()

    async def run(ctx: Context) -> None:
        raise CapacityError("full")

    kit.define("k", log.step("one"), Step("two", run, undo=undo))
    job = await kit.submit("k")
    await stuck.wait()
    await kit.restarted()
    job = await kit.ended(job)
    assert (job.state, times[0], log.lines) == (JobState.FAILED, 2, ["one", "-one"])
    assert job.error is not None
    assert job.error.code == "capacity"


async def test_a_result_outlives_a_crash(kit: Kit, log: Log) -> None:
    async def first(ctx: Context) -> None:
        ctx.result = {"found": 1}

    kit.define("k", Step("first", first), log.step("two", hold=True, repeatable=True))
    job = await kit.submit("k")
    await log.reached.wait()
    log.go_on.set()
    await kit.restarted()
    assert (await kit.ended(job)).result == {"found": 1}
