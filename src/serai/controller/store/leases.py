"""Leases, to be read. `LeaseRows` writes them, for `services/rights.py` alone."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store import tables
from serai.schema.errors import NotFoundError
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Lease

leases = tables.leases


class Leases:
    """One lease a VM."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

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

    async def on_host(self, host: HostName) -> list[Lease]:
        """The leases that a host holds."""
        rows = (await self.connection.execute(select(leases).where(leases.c.host == host))).mappings()
        return [Lease.model_validate(dict(row)) for row in rows]

    async def offered(self) -> list[Lease]:
        """The leases with a standing offer."""
        rows = (await self.connection.execute(select(leases).where(leases.c.offered_to.is_not(None)))).mappings()
        return [Lease.model_validate(dict(row)) for row in rows]
