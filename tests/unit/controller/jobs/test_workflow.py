"""What a step gets to work with."""

from __future__ import annotations

import asyncio

from tests.unit.controller.jobs.conftest import Context, Kit, Log, Notes

from serai.controller.jobs.workflow import Step
from serai.schema.errors import CapacityError
from serai.schema.job import JobState


async def test_command_ids_repeat_within_an_attempt_only(kit: Kit) -> None:
    ids: list[list[str]] = []

    async def run(ctx: Context) -> None:
        ids.append([ctx.command_id("a"), ctx.command_id("a"), ctx.command_id("b")])
        raise CapacityError("full")

    async def undo(ctx: Context) -> None:
        ids.append([ctx.command_id("a")])
        if len(ids) < 4:
            raise CapacityError("again")

    kit.define("k", Step("one", run, undo=undo))
    await kit.ended(await kit.submit("k"))
    flat = [one for group in ids for one in group]
    assert len(ids) == 4
    assert len(set(flat)) == len(flat)


async def test_what_is_remembered_is_written_with_the_next_write_and_by_save_at_once(kit: Kit, log: Log) -> None:
    async def run(ctx: Context) -> None:
        ctx.remember(before=1)
        assert ctx.state.before == 1
        seen.append(Notes.model_validate_json(await memory(kit, ctx.id)))
        await ctx.save(anything={"a": 2})
        seen.append(Notes.model_validate_json(await memory(kit, ctx.id)))

    seen: list[Notes] = []
    kit.define("k", log.step("one"), Step("two", run))
    job = await kit.ended(await kit.submit("k", state=Notes(before=7)))
    assert job.state is JobState.DONE
    assert seen == [Notes(seen=["one"], before=7), Notes(seen=["one"], before=1, anything={"a": 2})]


async def memory(kit: Kit, job_id: str) -> str:
    async with kit.store.read() as view:
        return (await view.jobs.record(job_id)).memory


async def test_a_wait_ends_with_what_is_waited_for_its_time_or_a_cancel(kit: Kit) -> None:
    ended: list[str] = []

    async def run(ctx: Context) -> None:
        happened = asyncio.Event()
        asyncio.get_running_loop().call_soon(happened.set)
        await ctx.until(happened.wait())
        ended.append("happened")
        await ctx.until(asyncio.Event().wait(), timeout=0.01)
        ended.append("timed out")
        ctx.cancelled.set()
        # That it was asked to cancel before ends no wait: a step that must go on does not spin.
        await ctx.until(asyncio.Event().wait(), timeout=0.01)
        ended.append("timed out")
        ctx.cancelled.clear()
        asyncio.get_running_loop().call_soon(ctx.cancelled.set)
        await ctx.until(asyncio.Event().wait())
        ended.append("cancelled")

    kit.define("wait", Step("wait", run))
    async with asyncio.timeout(10):
        await kit.ended(await kit.submit("wait"))
    assert ended == ["happened", "timed out", "timed out", "cancelled"]
