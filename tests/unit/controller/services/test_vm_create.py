"""VMs and volumes that are not asked for over HTTP: failover and reconcilers call the same services."""

from __future__ import annotations

import pytest
from tests.unit.controller.conftest import GIB, World

from serai.controller.services import vm_actions, vm_create, volume_actions
from serai.controller.services.requester import Requester
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.vm import DiskSpec, VmCreate, VmSpec, VmStart
from serai.schema.volume import VolumeCreate, VolumeSpec


async def test_another_requester_than_a_caller_of_the_api(world: World) -> None:
    failover = Requester(world.engine, world.rights, "failover", "h2 is fenced")
    async with world.store.transaction() as tx:
        pool, image = await tx.pools.find("shared0"), await tx.images.find("tiny")
        spec = VmSpec(image=image.id, memory=256 << 20, disks=[DiskSpec(pool=pool.id, size=GIB)], running=False)
        made = await vm_create.create(tx, failover, VmCreate(name="web1", spec=spec))
        vm = await tx.vms.find("web1")
        assert [volume.name for volume in await tx.volumes.of_vm(vm.id)] == ["web1-disk0"]
        with pytest.raises(ConflictError, match="being started already"):
            await vm_actions.start(tx, failover, vm, VmStart())
        alone = await volume_actions.create(
            tx, failover, VolumeCreate(name="data", spec=VolumeSpec(pool=pool.id, size=GIB))
        )
    for job in (made, alone):
        assert (job.requested_by, job.reason) == ("failover", "h2 is fenced")


async def test_a_refused_vm_leaves_no_volume(world: World) -> None:
    """Volumes are written before it is known whether the VM fits anywhere."""
    failover = Requester(world.engine, world.rights, "failover")
    with pytest.raises(InvalidError, match="that much memory"):
        async with world.store.transaction() as tx:
            pool, image = await tx.pools.find("shared0"), await tx.images.find("tiny")
            spec = VmSpec(image=image.id, memory=1 << 40, disks=[DiskSpec(pool=pool.id, size=GIB)])
            await vm_create.create(tx, failover, VmCreate(name="web1", spec=spec))
    async with world.store.read() as view:
        assert await view.volumes.named("web1-disk0") is None
