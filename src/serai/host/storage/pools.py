"""A host's pools, remembered in its journal, and the iSCSI target that exports their volumes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from serai.drivers.storage.base import Exporter, PoolDriver
from serai.host.store import HostStore
from serai.lib.paths import HostPaths
from serai.schema.commands.pool import ClosePool, OpenPool
from serai.schema.errors import ConflictError, InvalidError, NotFoundError, SeraiError, UnsupportedError
from serai.schema.volume import ExportKind, PoolStatus

log = logging.getLogger(__name__)

STATUS_PATIENCE = 3.0
"""Seconds that a pool may take to say how it is; a host is silent after three reports that did not come."""


class HostPools:
    """All pools of one host. `open_driver(pool)` names the concrete driver."""

    def __init__(
        self,
        *,
        store: HostStore,
        paths: HostPaths,
        exporter: Exporter | None,
        open_driver: Callable[[OpenPool], PoolDriver],
    ) -> None:
        self._store = store
        self._paths = paths
        self._exporter = exporter
        self._open_driver = open_driver
        self._pools: dict[str, PoolDriver] = {}
        self._opening = asyncio.Lock()
        self._looks: dict[str, asyncio.Task[PoolStatus]] = {}
        """By pool: the newest look at its state. A look that hangs holds a thread, and gets no second one beside it."""

    async def start(self) -> None:
        """Reopen the pools of the journal, and start the target if one of them is exported."""
        for pool in self._store.pools().values():
            try:
                await self._reopen(pool)
            except SeraiError as error:
                log.error("pool %s cannot be opened: %s", pool.pool, error)
        if self._exported():
            try:
                await self.target().start()
            except SeraiError as error:
                # This host's VMs must be adopted all the same; `check` tries again.
                log.error("the iSCSI target does not start: %s", error)

    async def check(self) -> None:
        """Called every few seconds: restart a target that has died."""
        async with self._opening:
            if self._exporter is not None and self._exported():
                await self._exporter.check()

    async def _open(self, pool: OpenPool, *, make: bool = True) -> PoolDriver:
        driver = self._open_driver(pool)
        await driver.open(make=make)
        self._pools[pool.pool] = driver
        return driver

    async def _reopen(self, pool: OpenPool) -> PoolDriver:
        """Open a pool of the journal. Only a folder inside the agent's own is created if it is missing: elsewhere a
        missing folder means a file system that is not mounted, and an empty pool would take the full one's place."""
        return await self._open(pool, make=not pool.path)

    # --- opened and closed ---

    async def open(self, body: OpenPool) -> PoolStatus:
        """Open a pool now and after every restart of the agent."""
        if body.path and not Path(body.path).is_absolute():
            raise InvalidError(
                "a pool's path is absolute", field="spec.path", value=body.path, remedy="Begin it with a slash."
            )
        async with self._opening:
            if body.export is ExportKind.ISCSI:
                await self.target().start()
            await self._refuse_shared(body)
            await asyncio.to_thread(self._refuse_own, body)
            # Before the folder bears the pool's mark: by this link its remains are found when the host is removed.
            await asyncio.to_thread(self._link, body)
            await self._open(body)
            self._store.put_pool(body)
        return await self._status(body)

    def _refuse_own(self, body: OpenPool) -> None:
        """Refuse the agent's own folders, what they contain and what contains them, through links and mounts too."""
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
        """Link a pool in another place from the agent's folder of pools."""
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
        """Refuse a second pool in one place. Only the host can see where links and mounts lead."""
        mine = await self._open_driver(body).places()
        for other in self._store.pools().values():
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

    async def close(self, body: ClosePool) -> None:
        """Forget an empty pool. Its folder is removed if it is the agent's own; else it loses only the pool's mark.

        The target, which outlives the agent, is stopped with the last exported pool.
        """
        driver = self._pools.get(body.pool)
        if driver is not None and await driver.list_volumes():
            raise ConflictError(
                "the pool still has volumes", field="pool", value=body.pool, remedy="Delete them first."
            )
        record = self._store.pools().get(body.pool)
        if driver is not None and record is not None:
            await driver.remove(keep=bool(record.path))
        await asyncio.to_thread(self._unlink, body.pool)
        async with self._opening:
            self._pools.pop(body.pool, None)
            self._store.forget_pool(body.pool)
            if self._exporter is not None and record is not None and not self._exported():
                await self._exporter.stop()

    async def statuses(self) -> dict[str, PoolStatus]:
        """By pool: its size and free space in bytes, or why it cannot be read, also that it does not answer."""
        pools = self._store.pools()
        for pool, record in pools.items():
            if pool not in self._looks or self._looks[pool].done():
                self._looks[pool] = asyncio.create_task(self._status(record), name=f"status-{pool}")
        looks = {pool: self._looks[pool] for pool in pools}
        if looks:
            await asyncio.wait(looks.values(), timeout=STATUS_PATIENCE)
        silent = f"it has not answered for {STATUS_PATIENCE:.0f} seconds; see that its storage does"
        return {
            pool: look.result() if look.done() else PoolStatus(state="failed", reason=silent, path=pools[pool].path)
            for pool, look in looks.items()
        }

    async def _status(self, record: OpenPool) -> PoolStatus:
        try:
            driver = self._pools.get(record.pool) or await self._reopen(record)
            room = await driver.status()
            volumes = await driver.list_volumes()
        except SeraiError as error:
            return PoolStatus(state="failed", reason=str(error), path=record.path)
        return PoolStatus(
            state="ready",
            path=str(driver.volume_path("0" * 12).parent),
            total=room.total,
            free=room.free,
            committed=sum(volume.size for volume in volumes),
            volumes=len(volumes),
        )

    # --- for volumes and VMs ---

    def driver(self, pool: str) -> PoolDriver:
        """The driver of an open pool. Raises NotFoundError."""
        found = self._pools.get(pool)
        if found is None:
            raise NotFoundError("the pool is not open on this host", field="pool", value=pool)
        return found

    def disk_path(self, pool: str, volume: str) -> Path:
        """Where a volume is as a file on this host."""
        return self.driver(pool).volume_path(volume)

    def target(self) -> Exporter:
        """The iSCSI target. Raises UnsupportedError where it is not installed."""
        if self._exporter is None:
            raise UnsupportedError(
                "this host cannot export volumes over iSCSI: tgtd is not installed",
                field="spec.export",
                value="iscsi",
                remedy="Install the package tgt there, or create the pool with export: none.",
            )
        return self._exporter

    def exported(self, pool: str) -> bool:
        """Whether the pool's volumes are exported over iSCSI."""
        return pool in self._exported()

    def _exported(self) -> set[str]:
        return {name for name, pool in self._store.pools().items() if pool.export is ExportKind.ISCSI}
