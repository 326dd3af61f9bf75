"""Networks, and the addresses that VNICs have on them.

The addresses table is what makes a double address or MAC impossible: its keys are unique whatever a caller does.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from serai.controller.store import tables
from serai.controller.store.resources import Resources
from serai.schema.errors import ConflictError
from serai.schema.ids import NetworkId, VmId
from serai.schema.network import Network
from serai.schema.vm import VnicSpec

addresses = tables.addresses


class Networks(Resources[Network, NetworkId]):
    """See `resources.Resources`."""

    kind = "network"
    table = tables.networks
    model = Network

    def columns(self, item: Network) -> dict[str, Any]:
        """Bridge."""
        return {"bridge": item.spec.bridge}

    async def on_bridge(self, bridge: str) -> list[Network]:
        """The networks of one wire."""
        return await self.all(self.table.c.bridge == bridge)

    async def used(self, network_id: NetworkId, *, but_vm: VmId | None = None) -> set[IPv4Address]:
        """Addresses taken on a network, not counting those of one VM."""
        query = select(addresses.c.ip).where(addresses.c.network_id == network_id)
        if but_vm is not None:
            query = query.where(addresses.c.vm_id != but_vm)
        return {IPv4Address(row.ip) for row in await self.connection.execute(query)}

    async def mac_taken(self, mac: str, *, but_vm: VmId | None = None) -> bool:
        """Whether a VNIC of another VM has this MAC."""
        query = select(addresses.c.mac).where(addresses.c.mac == mac)
        if but_vm is not None:
            query = query.where(addresses.c.vm_id != but_vm)
        return (await self.connection.execute(query)).first() is not None

    async def counts(self) -> dict[NetworkId, int]:
        """Network id to the number of addresses taken."""
        query = select(addresses.c.network_id, func.count()).group_by(addresses.c.network_id)
        return {row[0]: int(row[1]) for row in await self.connection.execute(query)}

    async def hold(self, vm_id: VmId, vnics: Iterable[VnicSpec]) -> None:
        """Make the addresses of these the VM's, in place of those that it had. Raises ConflictError."""
        await self.connection.execute(delete(addresses).where(addresses.c.vm_id == vm_id))
        for vnic in vnics:
            if vnic.ip is None or vnic.mac is None:
                continue
            values = {"network_id": vnic.network, "ip": str(vnic.ip), "mac": vnic.mac, "vm_id": vm_id}
            try:
                await self.connection.execute(insert(addresses).values(**values))
            except IntegrityError as error:
                raise ConflictError(
                    f"address {vnic.ip} or MAC {vnic.mac} is taken",
                    field="spec.vnics",
                    value=vnic.ip,
                    remedy="Leave both out: free ones are chosen then.",
                ) from error
