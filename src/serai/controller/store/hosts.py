"""Hosts: rows made when an agent says hello for the first time. Everything refers to a host by its name."""

from __future__ import annotations

from typing import Any

from serai.controller.store import tables
from serai.controller.store.resources import Resources
from serai.schema.host import Host, HostState
from serai.schema.ids import HostId, HostName


class Hosts(Resources[Host, HostId]):
    """See `resources.Resources`; what is committed on a host is summed up by `Vms.committed`."""

    kind = "host"
    reference = "name"
    table = tables.hosts
    model = Host

    def columns(self, item: Host) -> dict[str, Any]:
        """State."""
        return {"state": item.status.state.value}

    async def need(self, name: HostName, field: str | None = None) -> Host:
        """The host that something refers to. Raises NotFoundError, which names `field`."""
        host = await self.named(name)
        if host is None:
            raise self.missing(name, field)
        return host

    async def online(self) -> list[Host]:
        """The hosts that answer."""
        return await self.all(self.table.c.state == HostState.ONLINE.value)
