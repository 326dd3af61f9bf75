"""Where the database stands in its own history, and which agents it knows.

Each start of a controller is a run. A host remembers the highest position (run, sequence) that it has seen; one that
is not of this database's past proves that the database was restored from a backup.
"""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store import tables
from serai.schema.ids import HostName
from serai.schema.reports import Incarnation, StorePosition

lineage, runs, incarnations = tables.lineage, tables.runs, tables.incarnations


class Lineage:
    """The sequence, the runs, and the journals of the hosts."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def sequence(self) -> int:
        """Grows with each change of a lease, and with each VM that is created or deleted."""
        return int((await self.connection.execute(select(lineage.c.sequence))).scalar_one())

    async def advance(self) -> None:
        """Something changed that a restored database would not know."""
        await self.connection.execute(update(lineage).values(sequence=lineage.c.sequence + 1))

    async def begin(self, run: str) -> None:
        """A controller starts."""
        await self.connection.execute(insert(runs).values(id=run, sequence=await self.sequence()))

    async def position(self) -> StorePosition:
        """Where the database stands, in the present run."""
        query = select(runs.c.id).order_by(runs.c.number.desc()).limit(1)
        run = (await self.connection.execute(query)).scalar_one()
        return StorePosition(run=run, sequence=await self.sequence())

    async def knows(self, seen: StorePosition) -> bool:
        """Whether a position that a host has seen is one of this database's past."""
        number = (await self.connection.execute(select(runs.c.number).where(runs.c.id == seen.run))).scalar()
        if number is None:
            return False
        query = select(runs.c.sequence).where(runs.c.number > number).order_by(runs.c.number).limit(1)
        end = (await self.connection.execute(query)).scalar()
        return seen.sequence <= (await self.sequence() if end is None else end)

    async def restored(self) -> bool:
        """Whether hosts have yet to report since the database was restored from a backup."""
        return bool((await self.connection.execute(select(lineage.c.restored))).scalar_one())

    async def set_restored(self, restored: bool) -> None:
        """See `restored`."""
        await self.connection.execute(update(lineage).values(restored=restored))

    async def incarnation(self, host: HostName) -> Incarnation | None:
        """The last agent of a host that was accepted."""
        query = select(incarnations.c.journal, incarnations.c.starts).where(incarnations.c.host == host)
        row = (await self.connection.execute(query)).first()
        return None if row is None else Incarnation(journal=row.journal, starts=row.starts)

    async def accept(self, host: HostName, incarnation: Incarnation) -> None:
        """This is the host's agent from now on."""
        await self.forget(host)
        values = {"host": host, "journal": incarnation.journal, "starts": incarnation.starts}
        await self.connection.execute(insert(incarnations).values(**values))

    async def forget(self, host: HostName) -> None:
        """The host is deleted: another agent may take its name."""
        await self.connection.execute(delete(incarnations).where(incarnations.c.host == host))
