"""A host's bridges: those that networks need, and the taking of an uplink with its rollback."""

from __future__ import annotations

from serai.drivers.network.base import NetworkDriver
from serai.drivers.network.uplink import UplinkTaker
from serai.schema.messages import NetworkEnsure, UplinkConfirm, UplinkTakeCommand, UplinkTaken


class HostUplinks:
    """What is asked of a host's bridges."""

    def __init__(self, network: NetworkDriver, taker: UplinkTaker) -> None:
        self._network = network
        self._taker = taker

    async def ensure(self, body: NetworkEnsure) -> None:
        """The network's bridge is there; one without an uplink joins the VMs of this host only."""
        await self._network.ensure_bridge(body.spec.bridge, body.spec.mtu)

    async def take(self, body: UplinkTakeCommand) -> UplinkTaken:
        """Put a bridge on an uplink; undone by itself unless confirmed."""
        return await self._taker.take(body.uplink, body.bridge, body.confirm_within)

    async def confirm(self, body: UplinkConfirm) -> None:
        """Keep what was taken."""
        await self._taker.confirm(body.token)
