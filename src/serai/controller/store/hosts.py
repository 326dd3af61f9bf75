"""Hosts: rows made when an agent says hello for the first time."""

from __future__ import annotations

from typing import Any

from serai.controller.store import tables
from serai.controller.store.resources import Resources
from serai.schema.host import Host


class Hosts(Resources[Host]):
    """See `resources.Resources`; what is committed on a host is summed up by `Vms.committed`."""

    kind = "host"
    table = tables.hosts
    model = Host

    def columns(self, item: Host) -> dict[str, Any]:
        """State."""
        return {"state": item.status.state.value}
