"""Pools and the sums of what was promised in them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from serai.controller.store import tables
from serai.controller.store.resources import Resources
from serai.schema.ids import HostName, ImageId, PoolId, VmId, VolumeId
from serai.schema.volume import Pool, Volume


class Pools(Resources[Pool, PoolId]):
    """See `resources.Resources`."""

    kind = "pool"
    table = tables.pools
    model = Pool

    def columns(self, item: Pool) -> dict[str, Any]:
        """Host."""
        return {"host": item.spec.host}

    async def on_host(self, host: HostName) -> list[Pool]:
        """The pools of one host."""
        return await self.all(self.table.c.host == host)

    async def committed(self) -> dict[PoolId, tuple[int, int]]:
        """Pool to (bytes promised, volumes)."""
        volumes = tables.volumes.c
        query = select(volumes.pool, func.sum(volumes.size), func.count()).group_by(volumes.pool)
        return {row[0]: (int(row[1]), int(row[2])) for row in await self.connection.execute(query)}


class Volumes(Resources[Volume, VolumeId]):
    """See `resources.Resources`."""

    kind = "volume"
    table = tables.volumes
    model = Volume

    def columns(self, item: Volume) -> dict[str, Any]:
        """What it refers to, and its size."""
        return {"pool": item.spec.pool, "image": item.spec.image, "vm": item.status.vm, "size": item.spec.size}

    async def of_vm(self, vm: VmId) -> list[Volume]:
        """The volumes that a VM has."""
        return await self.all(self.table.c.vm == vm)

    async def in_pool(self, pool: PoolId) -> list[Volume]:
        """The volumes of a pool."""
        return await self.all(self.table.c.pool == pool)

    async def made_from(self, image: ImageId) -> list[Volume]:
        """The volumes that started with an image's content, or are about to."""
        return await self.all(self.table.c.image == image)
