"""A host's volumes: made, copied, grown, exported to one lease epoch and fenced from it, deleted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from serai.host.storage.pools import HostPools
from serai.lib.creations import Creations
from serai.schema.commands.volume import (
    AdmitInitiator,
    CreateVolume,
    DeleteVolume,
    GrowVolume,
    MeasureVolume,
    RefuseInitiator,
    VolumeExport,
    VolumeSize,
)
from serai.schema.errors import NotFoundError

log = logging.getLogger(__name__)

Report = Callable[[str, float | None], None]


class HostVolumes:
    """`portal` is where exports listen, `address:port`; `image_disk(image)` is (file, format) of an intact image."""

    def __init__(
        self, pools: HostPools, *, portal: str, image_disk: Callable[[str], Awaitable[tuple[Path, str]]]
    ) -> None:
        self._pools = pools
        self._portal = portal
        self._image_disk = image_disk
        self._volumes = Creations("volume")

    async def make(self, body: CreateVolume, report: Report) -> None:
        """Create a volume, empty, from an image or as a copy of another. A complete one that is there already stays."""
        await self._volumes.create(body.volume, lambda: self._make(body, report))

    async def _make(self, body: CreateVolume, report: Report) -> None:
        driver = self._pools.driver(body.pool)
        present = {volume.id for volume in await driver.list_volumes()}
        if body.volume not in present:

            def progress(done: int, total: int) -> None:
                report("copy", done / total if total else None)

            if body.image is not None:
                file, file_format = await self._image_disk(body.image)
                await driver.create_from_image(body.volume, file, file_format, body.size, progress)
            elif body.clone_of is not None:
                await driver.clone_volume(body.clone_of, body.volume, progress)
            else:
                await driver.create_volume(body.volume, body.size)
        if body.clone_of is not None:
            await driver.grow_volume(body.volume, body.size)

    async def drop(self, body: DeleteVolume) -> None:
        """End the volume's export and delete it; cancel its creation if that is under way. Idempotent."""
        async with self._volumes.deleting(body.volume):
            if self._pools.exported(body.pool):
                await self._pools.target().unexport(body.volume)
            await self._pools.driver(body.pool).delete_volume(body.volume)

    async def grow(self, body: GrowVolume) -> None:
        """Make a volume, and its LUN, larger."""
        async with self._volumes.lock(body.volume):
            await self._pools.driver(body.pool).grow_volume(body.volume, body.size)
            if self._pools.exported(body.pool):
                try:
                    await self._pools.target().grow(body.volume)
                except NotFoundError:
                    log.debug("volume %s is not exported: no LUN grows with it", body.volume)

    async def look(self, body: MeasureVolume) -> VolumeSize:
        """How large a volume is now. Raises NotFoundError."""
        async with self._volumes.lock(body.volume):
            for volume in await self._pools.driver(body.pool).list_volumes():
                if volume.id == body.volume:
                    return VolumeSize(size=volume.size)
        raise NotFoundError("there is no such volume in the pool", field="volume", value=body.volume)

    async def admit(self, body: AdmitInitiator) -> VolumeExport:
        """Export the volume if it is not yet, and admit one lease epoch for one host.

        Raises StaleError: the target is a witness of what was granted (ADR 7).
        """
        target = self._pools.target()
        export = await target.export(body.volume, self._pools.disk_path(body.pool, body.volume))
        await target.admit(body.volume, body.admission)
        return VolumeExport(portal=self._portal, target=export.target_iqn, lun=export.lun)

    async def refuse(self, body: RefuseInitiator) -> None:
        """Fence lease epochs of a VM. A volume that is not exported has no session to close."""
        try:
            await self._pools.target().refuse(body.volume, body.vm, body.epoch, body.host)
        except NotFoundError:
            log.debug("volume %s is not exported: VM %s has no session", body.volume, body.vm)
