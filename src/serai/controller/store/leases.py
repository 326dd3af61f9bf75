"""Leases: the rules are core/lease.py's; the SQL here changes a row only if it is still the one that was read."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store import tables
from serai.core import lease as rules
from serai.schema.errors import NotFoundError, StaleError
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Lease

leases = tables.leases


class Leases:
    """One lease a VM."""

    def __init__(self, connection: AsyncConnection, now: datetime) -> None:
        self.connection = connection
        self.now = now

    async def get(self, vm: VmId) -> Lease | None:
        """The lease of a VM; None before its first start."""
        row = (await self.connection.execute(select(leases).where(leases.c.vm == vm))).mappings().first()
        return None if row is None else Lease.model_validate(dict(row))

    async def need(self, vm: VmId) -> Lease:
        """The lease of a VM. Raises NotFoundError."""
        lease = await self.get(vm)
        if lease is None:
            raise NotFoundError(f"VM {vm} has no lease: it never ran", field="vm", value=vm, remedy="Start it first.")
        return lease

    async def create(self, vm: VmId, host: HostName) -> Lease:
        """The first lease: epoch 1 on `host`."""
        lease = rules.first(vm, host)
        await self.connection.execute(insert(leases).values(**self._values(lease)))
        return lease.model_copy(update={"updated": self.now})

    async def offer(self, vm: VmId, to: HostName, offer_id: str) -> Lease:
        """Epoch `highest + 1` may go to `to`. Raises ConflictError if an offer stands, NotFoundError, StaleError."""
        lease = await self.need(vm)
        return await self._step(lease, rules.offer(lease, to, offer_id))

    async def commit(self, vm: VmId, epoch: int, host: HostName) -> Lease:
        """`host` has committed `epoch`. Idempotent. Raises StaleError, NotFoundError."""
        lease = await self.need(vm)
        return await self._step(lease, rules.commit(lease, epoch, host))

    async def withdraw(self, vm: VmId, offer_id: str) -> Lease:
        """The offer was turned down for ever. Idempotent. Raises NotFoundError, StaleError."""
        lease = await self.need(vm)
        return await self._step(lease, rules.withdraw(lease, offer_id))

    async def advance(self, vm: VmId, host: HostName) -> Lease:
        """A fresh start there, once the old holder has released. Raises ConflictError during a move."""
        lease = await self.need(vm)
        return await self._step(lease, rules.advance(lease, host))

    async def drop(self, vm: VmId) -> None:
        """Forget the lease of a VM that is deleted."""
        await self.connection.execute(delete(leases).where(leases.c.vm == vm))

    async def on_host(self, host: HostName) -> list[Lease]:
        """The leases that a host holds."""
        rows = (await self.connection.execute(select(leases).where(leases.c.host == host))).mappings()
        return [Lease.model_validate(dict(row)) for row in rows]

    async def offered(self) -> list[Lease]:
        """The leases with a standing offer."""
        rows = (await self.connection.execute(select(leases).where(leases.c.offered_to.is_not(None)))).mappings()
        return [Lease.model_validate(dict(row)) for row in rows]

    async def _step(self, before: Lease, after: Lease) -> Lease:
        if after == before:
            return before
        query = (
            update(leases)
            .where(
                leases.c.vm == before.vm,
                leases.c.epoch == before.epoch,
                leases.c.highest == before.highest,
                leases.c.offer_id.is_not_distinct_from(before.offer_id),
            )
            .values(**self._values(after))
        )
        if (await self.connection.execute(query)).rowcount != 1:
            raise StaleError(f"the lease of VM {before.vm} changed meanwhile", remedy="Read it again.")
        return after.model_copy(update={"updated": self.now})

    def _values(self, lease: Lease) -> dict[str, object]:
        return {**lease.model_dump(mode="json", exclude={"updated"}), "updated": self.now.isoformat()}
