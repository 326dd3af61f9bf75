"""A host's bridges: those that networks need, and the taking of an uplink with its rollback."""

from __future__ import annotations

from serai.drivers.network.base import NetworkDriver, Uplinks
from serai.schema.messages import NetworkEnsure, UplinkConfirm, UplinkTakeCommand, UplinkTaken


class HostUplinks:
    """What is asked of a host's bridges."""

    def __init__(self, network: NetworkDriver, uplinks: Uplinks) -> None:
        self._network = network
        self._uplinks = uplinks

    async def ensure(self, body: NetworkEnsure) -> None:
        """The network's bridge is there; one without an uplink joins the VMs of this host only."""
        await self._network.ensure_bridge(body.spec.bridge, body.spec.mtu)

    async def take(self, body: UplinkTakeCommand) -> UplinkTaken:
        """Put a bridge on an uplink; undone by itself unless confirmed."""
        return await self._uplinks.take(body.uplink, body.bridge, body.confirm_within)

    async def confirm(self, body: UplinkConfirm) -> None:
        """Keep what was taken."""
        await self._uplinks.confirm(body.token)
