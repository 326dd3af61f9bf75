"""Events: numbered as they are written, under the one writer lock, so numbers grow in the order of commits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store.resources import Document, RawPage
from serai.controller.store.tables import events


@dataclass(frozen=True)
class Narrow:
    """Which events: of a `kind` (`vm.state`, or `vm` for all that begin so), of a `resource` (`vm/web1`, or its id)."""

    kind: str | None = None
    resource: str | None = None

    def where(self) -> list[ColumnElement[bool]]:
        """As conditions on the table."""
        found: list[ColumnElement[bool]] = []
        if self.kind is not None:
            found.append((events.c.kind == self.kind) | events.c.kind.startswith(f"{self.kind}.", autoescape=True))
        if self.resource is not None:
            found.append((events.c.resource == self.resource) | (events.c.resource_id == self.resource))
        return found


class Events:
    """The log of what happened."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def add(
        self, time: datetime, kind: str, resource: str, resource_id: str, message: str, data: dict[str, Any]
    ) -> tuple[int, str]:
        """Write one and return its number and its JSON."""
        values: Document = {
            "time": time.isoformat(),
            "kind": kind,
            "resource": resource,
            "resource_id": resource_id,
            "message": message,
            "data": data,
        }
        query = insert(events).values(**values).returning(events.c.seq)
        seq: int = (await self.connection.execute(query)).scalar_one()
        return seq, json.dumps({"seq": seq, **values})

    async def after(self, seq: int, limit: int) -> list[tuple[int, str]]:
        """(number, JSON) of the events that follow `seq`, oldest first."""
        query = select(events).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
        return [(row["seq"], json.dumps(dict(row))) for row in (await self.connection.execute(query)).mappings()]

    async def page(self, after: int, limit: int, narrow: Narrow) -> RawPage:
        """A page of events after a number; its cursor is the last number on it."""
        query = select(events).where(events.c.seq > after, *narrow.where()).order_by(events.c.seq).limit(limit + 1)
        rows = (await self.connection.execute(query)).mappings().all()
        cursor = str(rows[limit - 1]["seq"]) if len(rows) > limit else None
        return RawPage([dict(row) for row in rows[:limit]], cursor)

    async def before_last(self, count: int, narrow: Narrow) -> int:
        """The number after which the last `count` events begin; 0 if there are no more than these."""
        query = select(events.c.seq).where(*narrow.where()).order_by(events.c.seq.desc()).offset(count).limit(1)
        seq: int | None = (await self.connection.execute(query)).scalar()
        return seq or 0

    async def newest(self) -> int:
        """The highest number there is; 0 if none."""
        newest: int | None = (await self.connection.execute(select(func.max(events.c.seq)))).scalar_one()
        return newest or 0

    async def clear(self, before: datetime) -> int:
        """Delete events older than a time; returns how many."""
        return (await self.connection.execute(delete(events).where(events.c.time < before.isoformat()))).rowcount
