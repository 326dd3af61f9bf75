"""What hosts have yet to do: commands for hosts that did not answer when something was deleted, ended or moved away."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store import tables
from serai.schema.commands.base import BodyT, Command
from serai.schema.encoding import to_dict
from serai.schema.ids import HostName

leftovers = tables.leftovers


@dataclass(frozen=True)
class Leftover:
    """One command for one host. `key`: see `Command`. `what` and `why` are words for people."""

    number: int
    host: HostName
    command: str
    key: str
    body: dict[str, Any]
    what: str
    why: str
    since: datetime


class Leftovers:
    """In the order in which they were left."""

    def __init__(self, connection: AsyncConnection, now: datetime) -> None:
        self.connection = connection
        self.now = now

    async def add(self, host: HostName, command: Command[BodyT, Any], body: BodyT, what: str, why: str) -> None:
        """`host` has yet to carry out a command."""
        values = {"host": host, "command": command.name, "key": command.key(body), "body": json.dumps(to_dict(body))}
        words = {"what": what, "why": why, "since": self.now.isoformat()}
        await self.connection.execute(insert(leftovers).values(**values, **words))

    async def all(self) -> list[Leftover]:
        """Those of all hosts."""
        rows = await self.connection.execute(select(leftovers).order_by(leftovers.c.number))
        return [
            Leftover(**{**row, "body": json.loads(row["body"]), "since": datetime.fromisoformat(row["since"])})
            for row in rows.mappings()
        ]

    async def of_host(self, host: HostName) -> list[Leftover]:
        """Those of one host."""
        return [one for one in await self.all() if one.host == host]

    async def drop(self, number: int) -> None:
        """It is done."""
        await self.connection.execute(delete(leftovers).where(leftovers.c.number == number))

    async def forget(self, host: HostName) -> None:
        """The host is deleted, and with it what it had to do."""
        await self.connection.execute(delete(leftovers).where(leftovers.c.host == host))
