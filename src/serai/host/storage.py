"""A host's pools, volumes and exports: what joins the storage drivers to the journal and to images."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from serai.drivers.storage.base import Exporter, PoolDriver
from serai.host.records import Records
from serai.lib.makings import Makings
from serai.lib.paths import HostPaths
from serai.schema.commands.pool import ClosePool, OpenPool
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
from serai.schema.errors import ConflictError, InvalidError, NotFoundError, SeraiError, UnsupportedError
from serai.schema.volume import ExportKind, PoolStatus

log = logging.getLogger(__name__)

Report = Callable[[str, float | None], None]


class HostStorage:
    """`open_driver(pool)` names the concrete driver; `image_disk(image)` is (file, format) of an image's sound copy."""

    def __init__(
        self,
        *,
        records: Records,
        paths: HostPaths,
        exporter: Exporter | None,
        portal: str,
        open_driver: Callable[[OpenPool], PoolDriver],
        image_disk: Callable[[str], Awaitable[tuple[Path, str]]],
    ) -> None:
        self._records = records
        self._paths = paths
        self._exporter = exporter
        self._portal = portal
        self._open_driver = open_driver
        self._image_disk = image_disk
        self._pools: dict[str, PoolDriver] = {}
        self._opening = asyncio.Lock()
        self._volumes = Makings("volume")

    async def start(self) -> None:
        """Open the pools of the journal again, and the target with what it exported."""
        for pool in self._records.pools().values():
            try:
                await self._reopen(pool)
            except SeraiError as error:
                log.error("pool %s cannot be opened: %s", pool.pool, error)
        if self._needs_target():
            try:
                await self._target().start()
            except SeraiError as error:
                # VMs of this host must be adopted all the same; `check` tries again.
                log.error("the iSCSI target does not start: %s", error)

    async def check(self) -> None:
        """Make the target what it should be; called every few seconds. A dead one is started again."""
        async with self._opening:
            if self._exporter is not None and self._needs_target():
                await self._exporter.check()

    def _needs_target(self) -> bool:
        return any(pool.export is ExportKind.ISCSI for pool in self._records.pools().values())

    def _target(self) -> Exporter:
        if self._exporter is None:
            raise UnsupportedError(
                "this host cannot export volumes over iSCSI: tgtd is not installed",
                field="spec.export",
                value="iscsi",
                remedy="Install the package tgt there, or create the pool with export: none.",
            )
        return self._exporter

    async def _open(self, pool: OpenPool, *, make: bool = True) -> PoolDriver:
        driver = self._open_driver(pool)
        await driver.open(make=make)
        self._pools[pool.pool] = driver
        return driver

    async def _reopen(self, pool: OpenPool) -> PoolDriver:
        """Open one of the journal. Only the agent's own folder is made again: where a file system is not mounted, an
        empty pool would take the place of the full one."""
        return await self._open(pool, make=not pool.path)

    def _pool(self, pool: str) -> PoolDriver:
        found = self._pools.get(pool)
        if found is None:
            raise NotFoundError("the pool is not open on this host", field="pool", value=pool)
        return found

    # --- pools ---

    async def open_pool(self, body: OpenPool) -> PoolStatus:
        """Open a pool here, now and after every restart."""
        if body.path and not Path(body.path).is_absolute():
            raise InvalidError(
                "a pool's path is absolute", field="spec.path", value=body.path, remedy="Begin it with a slash."
            )
        async with self._opening:
            if body.export is ExportKind.ISCSI:
                await self._target().start()
            await self._refuse_shared(body)
            await asyncio.to_thread(self._refuse_own, body)
            # Before the folder bears the pool's mark: whoever takes this host away finds by it what is to go.
            await asyncio.to_thread(self._link, body)
            await self._open(body)
            self._records.put_pool(body)
        return (await self.statuses())[body.pool]

    def _refuse_own(self, body: OpenPool) -> None:
        """Refuse the agent's own folders, what is in them and what they are in, by whatever way they are reached."""
        if not body.path:
            return
        paths, real = self._paths, Path(os.path.realpath(body.path))
        within = [place for place in (real, *real.parents) if place.exists()]
        for own in (paths.images, paths.pools, paths.vms, paths.pki, paths.run):
            inside = own.exists() and any(place.samefile(own) for place in within)
            if inside or real in (Path(os.path.realpath(own)), *Path(os.path.realpath(own)).parents):
                raise ConflictError(
                    f"the host agent keeps its own files in {own}",
                    field="spec.path",
                    value=body.path,
                    remedy="Give a folder outside it, or no path: then the pool is in the agent's folder for pools.",
                )

    def _link(self, body: OpenPool) -> None:
        """Show a pool that is elsewhere among the agent's own."""
        if not body.path:
            return
        link = self._paths.pools / body.pool
        self._unlink(body.pool)
        link.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        link.symlink_to(body.path)

    def _unlink(self, pool: str) -> None:
        link = self._paths.pools / pool
        if link.is_symlink():
            link.unlink()

    async def _refuse_shared(self, body: OpenPool) -> None:
        """Refuse a second pool in a pool's place; only here can be seen where links and mounts lead."""
        mine = await self._open_driver(body).places()
        for other in self._records.pools().values():
            if other.pool == body.pool:
                continue
            driver = self._pools.get(other.pool) or self._open_driver(other)
            if mine & await driver.places():
                raise ConflictError(
                    f"pool {other.pool} is in this folder already, under the path {other.path or 'of the agent'}",
                    field="spec.path",
                    value=body.path,
                    remedy="Choose another folder.",
                )

    async def close_pool(self, body: ClosePool) -> None:
        """Forget a pool that is empty. The agent's own folder goes with it; one that was given stays, without its mark.

        The target ends with the last pool that needs it: nobody else would end it, since it outlives the agent.
        """
        driver = self._pools.get(body.pool)
        if driver is not None and await driver.list_volumes():
            raise ConflictError(
                "the pool still has volumes", field="pool", value=body.pool, remedy="Delete them first."
            )
        record = self._records.pools().get(body.pool)
        if driver is not None and record is not None:
            await driver.remove(keep=bool(record.path))
        await asyncio.to_thread(self._unlink, body.pool)
        async with self._opening:
            self._pools.pop(body.pool, None)
            self._records.forget_pool(body.pool)
            if self._exporter is not None and record is not None and not self._needs_target():
                await self._exporter.stop()

    async def statuses(self) -> dict[str, PoolStatus]:
        """Every pool's room, in bytes; one that cannot be read says why."""
        found = {}
        for pool, record in self._records.pools().items():
            driver = self._pools.get(pool)
            try:
                if driver is None:
                    driver = await self._reopen(record)
                room = await driver.status()
                volumes = await driver.list_volumes()
            except SeraiError as error:
                found[pool] = PoolStatus(state="failed", reason=str(error), path=record.path)
                continue
            found[pool] = PoolStatus(
                state="ready",
                path=str(driver.volume_path("0" * 12).parent),
                total=room.total,
                free=room.free,
                committed=sum(volume.size for volume in volumes),
                volumes=len(volumes),
            )
        return found

    # --- volumes ---

    async def make(self, body: CreateVolume, report: Report) -> None:
        """Create a volume, empty, from an image or as a copy of another; one that is there whole already stays."""
        await self._volumes.make(body.volume, lambda: self._make(body, report))

    async def _make(self, body: CreateVolume, report: Report) -> None:
        driver = self._pool(body.pool)
        present = {volume.id: volume for volume in await driver.list_volumes()}
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
        """End its export and delete it, or its making; one that is gone is deleted already."""
        async with self._volumes.dropping(body.volume):
            if self._exports(body.pool):
                await self._target().unexport(body.volume)
            await self._pool(body.pool).delete_volume(body.volume)

    async def grow(self, body: GrowVolume) -> None:
        """Make a volume, and its LUN, larger."""
        async with self._volumes.alone(body.volume):
            await self._pool(body.pool).grow_volume(body.volume, body.size)
            if self._exports(body.pool):
                try:
                    await self._target().grow(body.volume)
                except NotFoundError:
                    log.debug("volume %s is not exported: nobody has to be told of its size", body.volume)

    async def look(self, body: MeasureVolume) -> VolumeSize:
        """How large a volume is now. Raises NotFoundError."""
        async with self._volumes.alone(body.volume):
            for volume in await self._pool(body.pool).list_volumes():
                if volume.id == body.volume:
                    return VolumeSize(size=volume.size)
        raise NotFoundError("there is no such volume in the pool", field="volume", value=body.volume)

    async def admit(self, body: AdmitInitiator) -> VolumeExport:
        """Export the volume if it is not yet, and let one lease epoch in."""
        target = self._target()
        export = await target.export(body.volume, self._pool(body.pool).volume_path(body.volume))
        await target.admit(body.volume, body.admission)
        return VolumeExport(portal=self._portal, target=export.target_iqn, lun=export.lun)

    async def refuse(self, body: RefuseInitiator) -> None:
        """Fence one lease epoch. A volume that is not exported has nobody to refuse."""
        try:
            await self._target().refuse(body.volume, body.initiator)
        except NotFoundError:
            log.debug("volume %s is not exported: %s holds nothing", body.volume, body.initiator)

    def _exports(self, pool: str) -> bool:
        record = self._records.pools().get(pool)
        return record is not None and record.export is ExportKind.ISCSI

    def disk_path(self, pool: str, volume: str) -> Path:
        """Where a volume is as a file on this host."""
        return self._pool(pool).volume_path(volume)
