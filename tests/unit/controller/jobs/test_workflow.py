"""What a step gets to work with."""

from __future__ import annotations

from tests.unit.controller.jobs.conftest import Context, Kit, Log, Notes

from serai.controller.jobs.workflow import Step
from serai.schema.errors import CapacityError
from serai.schema.job import JobState


async def test_command_ids_repeat_within_an_attempt_only(kit: Kit) -> None:
    ids: list[list[str]] = []

    async def run(_: object, ctx: Context) -> None:
        ids.append([ctx.command_id("a"), ctx.command_id("a"), ctx.command_id("b")])
        raise CapacityError("full")

    async def undo(_: object, ctx: Context) -> None:
        ids.append([ctx.command_id("a")])
        if len(ids) < 4:
            raise CapacityError("again")

    kit.define("k", Step("one", run, undo=undo))
    await kit.ended(await kit.submit("k"))
    flat = [one for group in ids for one in group]
    assert len(ids) == 4
    assert len(set(flat)) == len(flat)


async def test_what_is_remembered_is_written_with_the_next_write_and_by_save_at_once(kit: Kit, log: Log) -> None:
    async def run(_: object, ctx: Context) -> None:
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
