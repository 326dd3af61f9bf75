"""A host's bridges: those that networks need."""

from __future__ import annotations

from serai.drivers.network.base import NetworkDriver
from serai.schema.messages import NetworkEnsure


class HostUplinks:
    """What is asked of a host's bridges."""

    def __init__(self, network: NetworkDriver) -> None:
        self._network = network

    async def ensure(self, body: NetworkEnsure) -> None:
        """The network's bridge is there; one without an uplink joins the VMs of this host only."""
        await self._network.ensure_bridge(body.spec.bridge, body.spec.mtu)
