"""VMs, and what they commit of their hosts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, or_, select, update

from serai.controller.store import tables
from serai.controller.store.lineage import Lineage
from serai.controller.store.resources import Resources
from serai.core.observed import ALIVE
from serai.schema.ids import HostName, ImageId, VmId
from serai.schema.vm import Vm, VmState


@dataclass(frozen=True)
class Committed:
    """What the VMs of one host have been promised."""

    cpus: int = 0
    memory: int = 0
    vms: int = 0


class Vms(Resources[Vm, VmId]):
    """See `resources.Resources`."""

    kind = "vm"
    table = tables.vms
    model = Vm

    def columns(self, item: Vm) -> dict[str, Any]:
        """Host, state, image, and what it needs."""
        return {
            "host": item.status.host,
            "state": item.status.state.value,
            "image": item.spec.image,
            "cpus": item.spec.cpus,
            "memory": item.spec.memory,
            "running": item.spec.running,
        }

    async def insert(self, item: Vm) -> None:
        """Write a new one. Raises ConflictError if the name is taken."""
        await super().insert(item)
        await Lineage(self.connection).advance()

    async def delete(self, resource_id: VmId) -> None:
        """Take it away; harmless if it is not there."""
        await super().delete(resource_id)
        await Lineage(self.connection).advance()

    async def on_host(self, host: HostName) -> list[Vm]:
        """The VMs whose status names a host."""
        return await self.all(self.table.c.host == host)

    async def ids_on(self, host: HostName, states: Collection[VmState]) -> set[VmId]:
        """Ids of the VMs whose status names a host and one of these states."""
        query = select(self.table.c.id).where(self.table.c.host == host, self.table.c.state.in_(states))
        return set((await self.connection.execute(query)).scalars())

    async def committed(self, *, but: VmId | None = None) -> dict[HostName, Committed]:
        """Host name to what is committed there: VMs that run or shall run, and those a lease is offered for.

        A VM on the move counts on both hosts. `but` leaves one VM out.
        """
        table, lease = self.table.c, tables.leases.c
        counted = and_(or_(table.running, table.state.in_(ALIVE)), table.id != (but or ""))
        sums = (func.sum(table.cpus), func.sum(table.memory), func.count())
        here = select(table.host, *sums).where(counted, table.host.is_not(None)).group_by(table.host)
        coming = (
            select(lease.offered_to, *sums)
            .join_from(self.table, tables.leases, lease.vm == table.id)
            .where(counted, lease.offered_to.is_not(None), lease.offered_to != func.coalesce(table.host, ""))
            .group_by(lease.offered_to)
        )
        found: dict[HostName, Committed] = {}
        for query in (here, coming):
            for host, cpus, memory, vms in await self.connection.execute(query):
                before = found.get(host, Committed())
                found[host] = Committed(before.cpus + int(cpus), before.memory + int(memory), before.vms + vms)
        return found

    async def users_of_image(self, image: ImageId) -> list[str]:
        """Names of VMs made from an image."""
        query = select(self.table.c.name).where(self.table.c.image == image).order_by(self.table.c.name)
        return list((await self.connection.execute(query)).scalars())

    async def reported(self, vm_id: VmId) -> tuple[int, int, int]:
        """(epoch, starts, sequence) of the newest report that was written."""
        table = self.table.c
        query = select(table.report_epoch, table.report_starts, table.report_sequence).where(table.id == vm_id)
        row = (await self.connection.execute(query)).first()
        return (0, 0, 0) if row is None else (row[0], row[1], row[2])

    async def note_report(self, vm_id: VmId, epoch: int, starts: int, sequence: int) -> None:
        """Remember which report was written last."""
        values = {"report_epoch": epoch, "report_starts": starts, "report_sequence": sequence}
        await self.connection.execute(update(self.table).where(self.table.c.id == vm_id).values(**values))
