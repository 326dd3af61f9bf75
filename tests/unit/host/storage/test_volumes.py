"""A host's volumes: made, copied, grown, exported and deleted, and nothing is left of a copy that is given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.unit.host.storage.conftest import MakePools

from serai.drivers.storage.base import Progress
from serai.drivers.storage.fake import FakeExporter, FakePool
from serai.host.storage.volumes import HostVolumes
from serai.schema.commands.pool import OpenPool
from serai.schema.commands.volume import (
    AdmitInitiator,
    CreateVolume,
    DeleteVolume,
    GrowVolume,
    MeasureVolume,
    RefuseInitiator,
)
from serai.schema.errors import ConflictError, NotFoundError, StaleError
from serai.schema.ids import HostName, PoolId, VmId, VolumeId
from serai.schema.launch import Admission
from serai.schema.volume import ExportKind, PoolDriverName

POOL = PoolId("1" * 12)


async def no_image(name: str) -> tuple[Path, str]:
    raise AssertionError(name)


def nothing(_what: str, _part: float | None) -> None:
    """Progress that nobody wants to see."""


async def test_how_large_a_volume_is(tmp_path: Path, make_pools: MakePools) -> None:
    pools = make_pools()
    await pools.open(OpenPool(pool=POOL, driver=PoolDriverName.DIR, path=str(tmp_path / "one"), export=ExportKind.NONE))
    host = HostVolumes(pools, portal="", image_disk=no_image)
    look = MeasureVolume(pool=POOL, volume=VolumeId("0" * 12))
    with pytest.raises(NotFoundError):
        await host.look(look)
    await host.make(CreateVolume(pool=POOL, volume=VolumeId("0" * 12), size=1 << 20), nothing)
    assert (await host.look(look)).size == 1 << 20
    await host.grow(GrowVolume(pool=POOL, volume=VolumeId("0" * 12), size=2 << 20))
    assert (await host.look(look)).size == 2 << 20


class SlowPool(FakePool):
    """A copy goes on until it is told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def clone_volume(self, src_id: str, dst_id: str, progress: Progress | None = None) -> None:
        self.begun.set()
        await self.go_on.wait()
        await super().clone_volume(src_id, dst_id, progress)


async def test_a_copy_that_is_given_up_does_not_stay(make_pools: MakePools) -> None:
    pool = SlowPool()
    pools = make_pools(lambda _: pool)
    await pools.open(OpenPool(pool=POOL, driver=PoolDriverName.DIR, path="", export=ExportKind.NONE))
    host = HostVolumes(pools, portal="", image_disk=no_image)
    await host.make(CreateVolume(pool=POOL, volume=VolumeId("0" * 12), size=1 << 20), nothing)
    copy = CreateVolume(pool=POOL, volume=VolumeId("1" * 12), size=1 << 20, clone_of=VolumeId("0" * 12))
    making = asyncio.create_task(host.make(copy, nothing))
    await pool.begun.wait()
    dropping = asyncio.create_task(host.drop(DeleteVolume(pool=POOL, volume=VolumeId("1" * 12))))
    # It is not waited for: a copy may take hours.
    await dropping
    with pytest.raises(ConflictError, match="deleted while it was being created"):
        await making
    pool.go_on.set()
    assert [volume.id for volume in await pool.list_volumes()] == ["0" * 12]
    await host.make(copy, nothing)
    assert len(await pool.list_volumes()) == 2


async def test_an_exported_volume_is_admitted_fenced_and_grown_through_the_target(make_pools: MakePools) -> None:
    exporter = FakeExporter()
    pools = make_pools(lambda _: FakePool(), exporter=exporter)
    await pools.open(OpenPool(pool=POOL, driver=PoolDriverName.DIR, path="", export=ExportKind.ISCSI))
    host = HostVolumes(pools, portal="10.0.0.1:3260", image_disk=no_image)
    refuse = RefuseInitiator(pool=POOL, volume=VolumeId("0" * 12), vm=VmId("a" * 12), epoch=1)
    await host.make(CreateVolume(pool=POOL, volume=VolumeId("0" * 12), size=1 << 20), nothing)
    await host.refuse(refuse)  # nobody was ever admitted
    await host.grow(GrowVolume(pool=POOL, volume=VolumeId("0" * 12), size=2 << 20))
    admission = Admission(
        vm=VmId("a" * 12),
        epoch=1,
        host=HostName("h1"),
        initiator="iqn.first",
        user="u",
        password=SecretStr("secret-of-the-first"),
    )
    admitted = await host.admit(AdmitInitiator(pool=POOL, volume=VolumeId("0" * 12), admission=admission))
    assert (admitted.portal, admitted.lun) == ("10.0.0.1:3260", 1)
    await host.grow(GrowVolume(pool=POOL, volume=VolumeId("0" * 12), size=3 << 20))
    taken = admission.model_copy(update={"host": HostName("h2"), "initiator": "iqn.second", "user": "v"})
    with pytest.raises(StaleError):
        await host.admit(AdmitInitiator(pool=POOL, volume=VolumeId("0" * 12), admission=taken))
    await host.refuse(refuse)
    await host.drop(DeleteVolume(pool=POOL, volume=VolumeId("0" * 12)))
    with pytest.raises(NotFoundError):
        await exporter.grow("0" * 12)
