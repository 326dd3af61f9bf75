"""The ports of VNICs on this host's bridges: created with their taps, opened, closed and announced."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from serai.drivers.network.base import NetworkDriver, Tap
from serai.schema.errors import NotFoundError, SeraiError
from serai.schema.launch import VnicAttachment

log = logging.getLogger(__name__)


class VnicPorts:
    """`open`, `close` and `announce` are part of a migration's blackout: they use the driver's open sockets."""

    def __init__(self, host: str, driver: NetworkDriver) -> None:
        self._host = host
        self._driver = driver

    async def create(self, vnic: VnicAttachment, *, open_port: bool) -> Tap:
        """The VNIC's tap on its bridge. Raises NotFoundError, which names this host, if the bridge is missing."""
        try:
            return await self._driver.create_tap(vnic, open_port=open_port)
        except NotFoundError as error:
            raise NotFoundError(
                f"host {self._host} has no bridge {vnic.bridge}",
                field="spec.bridge",
                value=vnic.bridge,
                remedy=f"Make it there, for example: serai host network take UPLINK --host {self._host} "
                f"--bridge {vnic.bridge}.",
            ) from error

    async def open(self, vnics: Iterable[VnicAttachment]) -> None:
        """Let frames through. Tries every port; raises the first failure."""
        await _each(vnics, self._driver.open_port)

    async def close(self, vnics: Iterable[VnicAttachment]) -> None:
        """Let no frames through. Tries every port; raises the first failure."""
        await _each(vnics, self._driver.close_port)

    async def announce(self, vnics: Iterable[VnicAttachment]) -> None:
        """Tell the network where these VNICs are now. A failure is logged: QEMU and the guest announce them too."""
        for vnic in vnics:
            try:
                await self._driver.announce(vnic)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the VM must run all the same
                log.warning("could not announce %s on %s: %s", vnic.mac, vnic.bridge, error)


async def _each(vnics: Iterable[VnicAttachment], action: Callable[[str], Awaitable[None]]) -> None:
    failures = []
    for vnic in vnics:
        try:
            await action(vnic.tap)
        except SeraiError as error:
            failures.append(error)
    if failures:
        raise failures[0]
