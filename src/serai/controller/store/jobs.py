"""Jobs, with what only the engine reads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store.resources import Document, RawPage
from serai.controller.store.tables import jobs
from serai.schema.errors import InvalidError, NotFoundError
from serai.schema.job import Job, JobState

NUMBER_LENGTH = 19
"""Digits of the largest number that a column can hold."""
ACTIVE = tuple(state for state in JobState if not state.ended)


@dataclass(frozen=True)
class JobRecord:
    """A job as it is stored. `memory`: its workflow's state, as JSON; `version`: that workflow's."""

    job: Job
    memory: str = "{}"
    version: int = 1
    attempt: int = 0


def _document(row: Row[Any]) -> Document:
    return {name: getattr(row, name) for name in Job.model_fields}


def _values(record: JobRecord) -> Document:
    job = record.job
    times = {"created": job.created, "started": job.started, "ended": job.ended}
    return {
        **job.model_dump(mode="json", exclude=set(times)),
        **{name: None if time is None else time.isoformat() for name, time in times.items()},
        "memory": record.memory,
        "version": record.version,
        "attempt": record.attempt,
    }


class Jobs:
    """The table of jobs."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def insert(self, record: JobRecord) -> None:
        """Write a new one."""
        await self.connection.execute(insert(jobs).values(**_values(record)))

    async def save(self, record: JobRecord) -> None:
        """Write all of one that exists."""
        await self.connection.execute(update(jobs).where(jobs.c.id == record.job.id).values(**_values(record)))

    async def record(self, job_id: str) -> JobRecord:
        """One with the engine's part. Raises NotFoundError."""
        row = (await self.connection.execute(select(jobs).where(jobs.c.id == job_id))).first()
        if row is None:
            raise NotFoundError(
                f"there is no job {job_id}", field="job", value=job_id, remedy="See which there are: serai job list."
            )
        return _record(row)

    async def get(self, job_id: str) -> Job:
        """One. Raises NotFoundError."""
        return (await self.record(job_id)).job

    async def unfinished(self) -> list[JobRecord]:
        """All that have not ended, oldest first."""
        query = select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.number)
        return [_record(row) for row in await self.connection.execute(query)]

    async def active(self, target_id: str, *kinds: str) -> list[Job]:
        """Those on one resource that have not ended, of the given kinds (any, if none is given), oldest first."""
        query = select(jobs).where(jobs.c.target_id == target_id, jobs.c.state.in_(ACTIVE)).order_by(jobs.c.number)
        if kinds:
            query = query.where(jobs.c.kind.in_(kinds))
        return [_record(row).job for row in await self.connection.execute(query)]

    async def last(self, target_id: str, kind: str) -> Job | None:
        """The newest job of a kind on a resource."""
        query = (
            select(jobs)
            .where(jobs.c.target_id == target_id, jobs.c.kind == kind)
            .order_by(jobs.c.number.desc())
            .limit(1)
        )
        row = (await self.connection.execute(query)).first()
        return None if row is None else _record(row).job

    async def clear(self, before: datetime) -> int:
        """Delete jobs that ended before a time; returns how many."""
        query = delete(jobs).where(jobs.c.ended.is_not(None), jobs.c.ended < before.isoformat())
        return (await self.connection.execute(query)).rowcount

    async def page(self, limit: int, cursor: str | None, state: str | None, target: str | None) -> RawPage:
        """Newest first. `target` is `vm/web1`, or a resource's id. Raises InvalidError for a strange cursor."""
        query = select(jobs).order_by(jobs.c.number.desc()).limit(limit + 1)
        if cursor is not None:
            if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < NUMBER_LENGTH):
                raise InvalidError("not a cursor of this list", field="cursor", value=cursor, remedy="Leave it out.")
            query = query.where(jobs.c.number < int(cursor))
        if state is not None:
            query = query.where(jobs.c.state == state)
        if target is not None:
            query = query.where((jobs.c.target == target) | (jobs.c.target_id == target))
        rows = (await self.connection.execute(query)).all()
        return RawPage(
            [_document(row) for row in rows[:limit]], str(rows[limit - 1].number) if len(rows) > limit else None
        )


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(Job.model_validate(_document(row)), row.memory, row.version, row.attempt)
