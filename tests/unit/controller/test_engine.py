"""The engine: order, undo, cancel, locks, crashes, retries, and how soon a job begins."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serai.controller import run as run_module
from serai.controller.engine import Engine
from serai.controller.jobs import JobContext, StepDef, Workflow, written
from serai.controller.store import Store
from serai.schema.errors import CapacityError, ConflictError, UnsupportedError
from serai.schema.job import Job, JobState, StepState


class NoHosts:
    """No command is sent in these tests."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a command was sent")


async def do_nothing(_: JobContext) -> None:
    """A step that ends well."""


async def fails(_: JobContext) -> None:
    raise CapacityError("full")


class Log:
    """What ran, in order; steps made by `step` write to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def step(self, name: str, *, fail: Exception | None = None, hold: bool = False, **marks: Any) -> StepDef:
        async def run(ctx: JobContext) -> None:
            self.lines.append(name)
            ctx.data[name] = True
            if hold:
                self.reached.set()
                await self.go_on.wait()
                ctx.check_cancel()
            if fail is not None:
                raise fail

        async def undo(_: JobContext) -> None:
            self.lines.append(f"-{name}")

        return StepDef(name, run, undo=undo, **marks)


class Kit:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.workflows: dict[str, Workflow] = {}
        self.engine = Engine(store, NoHosts(), self.workflows)

    def define(self, kind: str, *steps: StepDef, **marks: Any) -> None:
        self.workflows[kind] = Workflow(kind, steps, **marks)

    async def submit(self, kind: str, target_id: str = "aaaaaaaaaaaa") -> Job:
        async with self.store.transaction() as tx:
            return await self.engine.submit(tx, kind, "vm/web1", target_id, {"id": target_id}, requested_by="test")

    async def ended(self, job: Job) -> Job:
        return await self.seen(job, lambda now: now.state.ended)

    async def seen(self, job: Job, condition: Callable[[Job], bool]) -> Job:
        async with asyncio.timeout(10):
            while True:
                newest = self.store.bell.newest
                async with self.store.read() as view:
                    now = await view.jobs.get(job.id)
                if condition(now):
                    return now
                await self.store.bell.beyond(newest)

    async def restarted(self) -> None:
        """As if the controller had been killed and started again, with the workflows that there are now."""
        await self.engine.stop()
        self.engine = Engine(self.store, NoHosts(), {**self.workflows})
        await self.engine.start()


@pytest.fixture
async def kit(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    monkeypatch.setattr(run_module, "RETRY_FIRST", 0.001)
    shutil.copyfile(empty_database, tmp_path / "serai.db")
    store = await Store.open(tmp_path / "serai.db")
    made = Kit(store)
    await made.engine.start()
    yield made
    await made.engine.stop()
    await store.close()


@pytest.fixture
def log() -> Log:
    return Log()


def states(job: Job) -> list[StepState]:
    return [step.state for step in job.steps]


async def test_steps_run_in_order_and_the_result_is_kept(kit: Kit, log: Log) -> None:
    async def last(ctx: JobContext) -> None:
        ctx.progress(0.5, "half")
        ctx.result = {"seen": sorted(ctx.data), "id": ctx.params["id"]}

    kit.define("k", log.step("one"), log.step("two"), StepDef("last", last))
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, job.result) == (JobState.DONE, {"seen": ["one", "two"], "id": "aaaaaaaaaaaa"})
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


async def leaks(_: JobContext) -> None:
    """Waits for something that somebody else cancels."""
    inner = asyncio.get_running_loop().create_future()
    inner.cancel()
    await inner


async def test_a_job_whose_task_meets_a_fault_is_undone(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), StepDef("two", leaks), log.step("three"))
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, log.lines) == (JobState.FAILED, ["one", "-one"])
    assert job.error is not None
    assert job.error.message == "a fault in the controller ended the job: CancelledError: "
    assert job.error.remedy is not None
    assert job.error.remedy.startswith("Nothing of it is left.")
    assert (await kit.ended(await kit.submit("k"))).state is JobState.FAILED, "its locks were not given up"


async def test_a_fault_behind_the_point_of_no_return_undoes_nothing(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one", point_of_no_return=True), StepDef("two", leaks, repeatable=True))
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, log.lines) == (JobState.FAILED, ["one"])
    assert job.error is not None
    assert job.error.remedy is not None
    assert "past the point where it could be undone" in job.error.remedy


async def test_a_job_whose_task_dies_ends_as_failed(kit: Kit, log: Log) -> None:
    async def spoil(ctx: JobContext) -> None:
        ctx.message = ["no", "text"]  # type: ignore[assignment]  # what the store cannot write

    kit.define("k", log.step("one"), StepDef("two", spoil))
    job = await kit.ended(await kit.submit("k"))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.remedy is not None
    assert job.error.remedy.startswith("What its steps one did is not undone: look at vm/web1.")


async def test_a_job_that_cannot_be_started_ends_as_failed(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one"), locks=lambda job: [job.params["no such"]])
    job = await kit.ended(await kit.submit("k"))
    assert (job.state, log.lines) == (JobState.FAILED, [])
    assert job.error is not None
    assert "KeyError: 'no such'" in job.error.message


async def test_a_fault_of_ours_ends_the_job_with_its_text(kit: Kit, log: Log) -> None:
    kit.define("k", log.step("one", fail=KeyError("x")))
    job = await kit.ended(await kit.submit("k"))
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("internal", "KeyError: 'x'")


async def test_data_that_is_no_json_fails_the_job_and_not_the_engine(kit: Kit, log: Log) -> None:
    async def bad(ctx: JobContext) -> None:
        ctx.data["x"] = object()

    kit.define("k", log.step("one"), StepDef("bad", bad))
    job = await kit.ended(await kit.submit("k"))
    assert job.state is JobState.FAILED
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

    async def stubborn(ctx: JobContext) -> None:
        tries.append(ctx.attempt)
        if len(tries) == 1:
            log.reached.set()
            await log.go_on.wait()
        if len(tries) < 3:
            raise CapacityError("not yet")

    kit.define("k", log.step("switch", point_of_no_return=True), StepDef("settle", stubborn, repeatable=True))
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

    async def undo(_: JobContext) -> None:
        if not mended.is_set():
            raise CapacityError("the host is away")

    async def run(_: JobContext) -> None:
        raise CapacityError("full")

    kit.define("k", StepDef("one", run, undo=undo))
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


async def test_a_job_that_overtakes_has_those_before_it_give_way(kit: Kit, log: Log) -> None:
    async def hurry(ctx: JobContext) -> None:
        await ctx.hurried.wait()
        log.lines.append("hurried")

    kit.define("move", log.step("one", hold=True))
    kit.define("kill", log.step("kill"), overtakes=lambda _: ("move", "stop"))
    kit.workflows["stop"] = Workflow("stop", (StepDef("stop", hurry, cancellable=False),), hurries=True)
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
    assert log.lines == ["one", "-one", "hurried", "kill"]


async def test_what_is_past_its_point_of_no_return_does_not_give_way(kit: Kit, log: Log) -> None:
    kit.define("move", log.step("switch", point_of_no_return=True), log.step("settle", hold=True, repeatable=True))
    kit.define("kill", log.step("kill"), overtakes=lambda _: ("move",))
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

    async def back(ctx: JobContext) -> None:
        log.lines.append(f"back to {ctx.data['before']}")

    kit.define("ahead", log.step("one", hold=True, repeatable=True))
    kit.define("k", written("w", back), StepDef("two", do_nothing if when == "never" else fails))
    if when == "queued":
        ahead = await kit.submit("ahead")
        await log.reached.wait()
    async with kit.store.transaction() as tx:
        data = {"before": 7}
        job = await kit.engine.submit(tx, "k", "vm/web1", "a" * 12, {}, requested_by="test", data=data)
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
    async def resume(ctx: JobContext) -> bool:
        log.lines.append("?")
        assert ctx.data["one"]
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

    async def undo(_: JobContext) -> None:
        times[0] += 1
        if times[0] == 1:
            stuck.set()
            await asyncio.Event().wait()

    async def run(_: JobContext) -> None:
        raise CapacityError("full")

    kit.define("k", log.step("one"), StepDef("two", run, undo=undo))
    job = await kit.submit("k")
    await stuck.wait()
    await kit.restarted()
    job = await kit.ended(job)
    assert (job.state, times[0], log.lines) == (JobState.FAILED, 2, ["one", "-one"])
    assert job.error is not None
    assert job.error.code == "capacity"


async def test_command_ids_repeat_within_an_attempt_only(kit: Kit) -> None:
    ids: list[list[str]] = []

    async def run(ctx: JobContext) -> None:
        ids.append([ctx.command_id("a"), ctx.command_id("a"), ctx.command_id("b")])
        raise CapacityError("full")

    async def undo(ctx: JobContext) -> None:
        ids.append([ctx.command_id("a")])
        if len(ids) < 4:
            raise CapacityError("again")

    kit.define("k", StepDef("one", run, undo=undo))
    await kit.ended(await kit.submit("k"))
    flat = [one for group in ids for one in group]
    assert len(ids) == 4
    assert len(set(flat)) == len(flat)


async def test_an_unknown_kind_is_refused(kit: Kit) -> None:
    with pytest.raises(UnsupportedError):
        await kit.submit("none")


async def test_a_job_begins_at_once(kit: Kit) -> None:
    """The figure itself is bench's matter; here only that nothing polls: 20 jobs in far less than 20 periods."""
    begun: dict[str, float] = {}

    async def run(ctx: JobContext) -> None:
        begun[ctx.id] = time.perf_counter()

    kit.define("k", StepDef("one", run))
    waits = []
    for number in range(20):
        job = await kit.submit("k", f"{number:012x}")
        answered = time.perf_counter()
        await kit.ended(job)
        waits.append((begun[job.id] - answered) * 1000)
    print(f"answer to first step: median {statistics.median(waits):.2f} ms, max {max(waits):.2f} ms")


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


async def test_an_undo_that_does_not_understand_another_versions_data_ends_all_the_same(kit: Kit, log: Log) -> None:
    async def undo(ctx: JobContext) -> None:
        raise KeyError("of the other version")

    kit.define("k", log.step("one", hold=True))
    job = await kit.submit("k")
    await log.reached.wait()
    kit.define("k", StepDef("one", log.step("one").run, undo=undo), log.step("two"))
    await kit.restarted()
    assert (await kit.ended(job)).state is JobState.FAILED


async def test_a_result_outlives_a_crash(kit: Kit, log: Log) -> None:
    async def first(ctx: JobContext) -> None:
        ctx.result = {"found": 1}

    kit.define("k", StepDef("first", first), log.step("two", hold=True, repeatable=True))
    job = await kit.submit("k")
    await log.reached.wait()
    log.go_on.set()
    await kit.restarted()
    assert (await kit.ended(job)).result == {"found": 1}
