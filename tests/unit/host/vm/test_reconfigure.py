"""What is changed live, and what waits for a restart."""

from __future__ import annotations

from tests.unit.host.ground import VM, Ground, Host, make_launch

from serai.drivers.image.base import write_manifest
from serai.drivers.image.store import ImageStore
from serai.schema.commands.vm import VM_CONFIGURE, ConfigureVm
from serai.schema.ids import ImageId
from serai.schema.image import ImageKind
from serai.schema.launch import KernelBoot, Seed, VnicAttachment
from serai.schema.vm import RestartPolicy


async def test_a_new_limit_of_cpus_is_said_to_be_pending(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    wanted = make_launch(generation=2, cpus=2, max_cpus=8)
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.NEVER))
    assert answer.applied == ["cpus"]
    assert "does not move" in answer.pending[0]


async def test_of_two_disks_the_first_is_removed_at_a_restart_only(ground: Ground, h1: Host) -> None:
    """A disk's place in the list is its place in the machine: the second one is not to be unplugged for the first."""
    (first,) = make_launch().disks
    source = first.source.model_copy(update={"volume": "e" * 12})
    second = first.model_copy(update={"index": 1, "name": "web1-1", "source": source, "serial": "e" * 12})
    await ground.run_vm("h1", launch=make_launch(disks=[first, second]))
    grown = second.model_copy(update={"index": 0, "size": second.size * 2})
    wanted = make_launch(generation=2, disks=[grown])
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.ON_FAILURE))
    assert answer.applied == []
    assert answer.pending == ["disks: disk 0 becomes another one, which needs a restart"]
    record = h1.store.vm(VM)
    assert record is not None
    assert record.launch.disks == [first, second]
    assert record.next_launch == wanted


async def test_of_two_vnics_the_first_is_removed_at_a_restart_only(ground: Ground, h1: Host) -> None:
    vnics = [
        VnicAttachment(index=index, mac=f"52:54:00:00:00:0{index}", bridge="br-lan", tap=f"sv{VM[:10]}-{index}")
        for index in range(2)
    ]
    await ground.run_vm("h1", launch=make_launch(vnics=vnics))
    wanted = make_launch(generation=2, vnics=[vnics[1].model_copy(update={"index": 0, "tap": vnics[0].tap})])
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.ON_FAILURE))
    assert (answer.applied, len(answer.pending)) == ([], 1)
    record = h1.store.vm(VM)
    assert record is not None
    assert record.launch.vnics == vnics


async def test_what_a_guest_reads_at_its_start_is_pending(ground: Ground, h1: Host) -> None:
    seed = Seed(user_data="#cloud-config\n", meta_data='{"local-hostname": "a"}\n', network_config="a: 1\n")
    image = "1" * 12
    store = ImageStore(h1.paths.images)
    store.open()
    async with store.adding(image) as folder:
        for name in ("vmlinuz", "initrd.img"):
            (folder / name).write_bytes(b"kernel")
        await write_manifest(folder, name="k", kind=ImageKind.KERNEL, files=["vmlinuz", "initrd.img"])
    boot = KernelBoot(image=ImageId(image), cmdline="quiet serai.ip=10.0.0.1")
    await ground.run_vm("h1", launch=make_launch(seed=seed, boot=boot))
    # What follows from the VM's name and VNICs is no wish of anybody's.
    other = seed.model_copy(update={"meta_data": '{"local-hostname": "b"}\n', "network_config": "a: 2\n"})
    same = make_launch(generation=2, seed=other, boot=boot.model_copy(update={"cmdline": "quiet"}))
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=same, restart=RestartPolicy.ON_FAILURE))
    assert answer.pending == []
    changed = make_launch(
        generation=3,
        seed=seed.model_copy(update={"user_data": "#!/bin/sh\n"}),
        boot=boot.model_copy(update={"cmdline": "loud"}),
    )
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=changed, restart=RestartPolicy.ON_FAILURE))
    assert [line.partition(":")[0] for line in answer.pending] == ["cmdline", "cloud-init"]
