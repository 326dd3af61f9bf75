"""Old events and jobs go; what is young or not ended stays."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from serai.controller.reconcilers.retention import KEEP_EVENTS, KEEP_JOBS, tidy
from serai.controller.store import JobRecord, Store
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.schema.ids import JobId
from serai.schema.job import Job, JobState

THEN = datetime(2026, 1, 1, tzinfo=UTC)


async def test_tidying(tmp_path: Path) -> None:
    clock = ManualClock(THEN)
    store = await Store.open(tmp_path / "serai.db", clock)
    ended = Job(
        id=new_id(JobId), kind="k", target="vm/a", requested_by="t", created=THEN, ended=THEN, state=JobState.DONE
    )
    at_work = Job(id=new_id(JobId), kind="k", target="vm/a", requested_by="t", created=THEN, state=JobState.RUNNING)
    async with store.transaction() as tx:
        await tx.emit("a", "b")
        await tx.jobs.insert(JobRecord(ended))
        await tx.jobs.insert(JobRecord(at_work))
    clock.advance(KEEP_EVENTS.total_seconds() - 1)
    await tidy(store)
    async with store.read() as view:
        assert len(await view.events.after(0, 9)) == 1
    clock.advance(KEEP_JOBS.total_seconds())
    await tidy(store)
    async with store.read() as view:
        assert await view.events.after(0, 9) == []
        assert len((await view.jobs.page(9, None, None, None)).items) == 1
        assert (await view.jobs.get(at_work.id)).state is JobState.RUNNING
    await store.close()
