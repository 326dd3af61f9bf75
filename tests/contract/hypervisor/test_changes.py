"""What every hypervisor changes on a running VM."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.hypervisor.benches import MIB, Bench, started

from serai.lib.ids import new_id
from serai.schema.errors import ConflictError, UnsupportedError
from serai.schema.ids import PoolId, VolumeId
from serai.schema.launch import Disk, FileDisk, VnicAttachment


async def test_cpus_grow_up_to_what_was_planned(bench: Bench) -> None:
    machine = await started(bench)
    await machine.set_cpus(2)
    assert machine.launch.cpus == 2
    for count in (1, 3):
        with pytest.raises(UnsupportedError):
            await machine.set_cpus(count)
    with pytest.raises(UnsupportedError):
        await machine.set_memory(64 * MIB)
    await machine.kill()
    await machine.close()


async def test_disk_plugged_in_is_part_of_the_launch(bench: Bench, tmp_path: Path) -> None:
    machine = await started(bench)
    await machine.cont()
    file = tmp_path / "more.raw"
    file.write_bytes(bytes(MIB))
    more = Disk(index=1, name="more", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)))
    await machine.attach_disk(more, file)
    assert [disk.index for disk in machine.launch.disks] == [0, 1]
    with pytest.raises(ConflictError):
        await machine.attach_disk(more, file)
    with pytest.raises(UnsupportedError):
        await machine.attach_disk(more.model_copy(update={"index": 4}), file)
    with pytest.raises(ConflictError):
        await machine.detach_disk(2)
    with file.open("r+b") as grown:
        grown.truncate(2 * MIB)
    await machine.block_grow(1, 2 * MIB)
    assert machine.launch.disks[1].size == 2 * MIB
    with pytest.raises(ConflictError):
        await machine.block_grow(3, 2 * MIB)
    await machine.close()
    again = await bench.one.adopt(machine.vm, bench.resources(machine.launch).run_dir)
    assert again is not None
    assert again.launch == machine.launch
    await again.kill()
    await again.close()


async def test_vnics_beyond_the_ports_need_a_restart(bench: Bench) -> None:
    machine = await started(bench)
    vnic = VnicAttachment(index=5, mac="52:54:00:00:00:05", bridge="br-lan", tap="svtest-5")
    with pytest.raises(UnsupportedError):
        await machine.attach_vnic(vnic, -1)
    with pytest.raises(ConflictError):
        await machine.detach_vnic(0)
    await machine.kill()
    await machine.close()


async def test_no_guest_agent(bench: Bench) -> None:
    machine = await started(bench)
    await machine.cont()
    assert not await machine.guest_agent_open()
    await machine.kill()
    await machine.close()
