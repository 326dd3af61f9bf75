"""A volume grows under a guest that writes to it: the guest is told, goes on, sees no error, and can move."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
from tests.support.lab import Lab

from serai.lab.state import LabFolder
from serai.schema.vm import VmState
from serai.schema.volume import VolumeEdit

from .cli import Serai

MIB = 1 << 20


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


async def resize(serai: Serai, volume: str, size: int) -> list[str]:
    """What was applied to the running VM."""
    ran = await serai.well("volume", "resize", volume, f"{size}M", "-o", "json")
    assert ran.json["result"]["size"] == size * MIB
    applied: list[str] = ran.json["result"]["applied"]
    return applied


async def test_a_disk_grows_while_its_vm_writes_to_it(lab: Lab, serai: Serai) -> None:
    vm = await lab.create()
    guest = lab.guest(vm)
    boot = await guest.boot_id()
    await guest.write_disk()
    volume = (await serai("volume", "list", "--vm", vm.name, "-o", "name")).out.strip()
    for size in (48, 64):
        assert await resize(serai, volume, size) == ["disk 0 grown"]
        assert (await lab.vm(vm.name)).status.state is VmState.RUNNING
    assert await resize(serai, volume, 64) == []
    shown = (await serai("volume", "show", volume, "-o", "json")).json
    assert (shown["spec"]["size"], shown["status"]["size"]) == (64 * MIB, 64 * MIB)
    # QEMU has it, by what its host keeps of it; and the other end of a move has it too.
    await lab.done(await lab.migrate(vm.name, "h2"))
    runtime = LabFolder.of(lab.name).host("h2") / "run" / "vms" / vm.id
    assert any(f'"size":{64 * MIB}' in file.read_text().replace(" ", "") for file in runtime.glob("*.json"))
    assert await resize(serai, volume, 80) == ["disk 0 grown"]
    count = await guest.stop_disk()
    assert (count.errors, count.verified > 0) == (0, True)
    assert await guest.boot_id() == boot


async def test_one_that_was_paused_stays_paused(lab: Lab, serai: Serai) -> None:
    vm = await lab.create()
    volume = (await serai("volume", "list", "--vm", vm.name, "-o", "name")).out.strip()
    await serai.well("vm", "pause", vm.name)
    assert await resize(serai, volume, 40) == ["disk 0 grown"]
    assert (await lab.vm(vm.name)).status.state is VmState.PAUSED
    await serai.well("vm", "resume", vm.name)
    await lab.guest(vm).up()
    await serai.well("vm", "stop", vm.name, "--force")
    ran = await serai.well("volume", "resize", volume, "48M", "-o", "json")
    assert ran.json["result"]["note"].startswith("the VM is not running")


@contextlib.contextmanager
def frozen(lab: Lab, role: str) -> Iterator[None]:
    pid = lab.record(role).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_controller_killed_in_mid_growth_lets_the_vm_go_on_when_it_is_back(lab: Lab, serai: Serai) -> None:
    vm = await lab.create(host="h2")
    guest = lab.guest(vm)
    boot = await guest.boot_id()
    await guest.write_disk()
    volume = (await serai("volume", "list", "--vm", vm.name, "-o", "name")).out.strip().removeprefix("volume/")
    assert vm.spec.disks[0].pool == "shared0"
    # The pool's own agent does not answer: the VM stands still on the other host, and the volume has not grown.
    with frozen(lab, "agent h1"):
        job = await lab.client.call("volume.edit", volume, body=VolumeEdit(size=48 * MIB))
        await lab.until(vm.name, lambda now: now.status.state is VmState.PAUSED)
        await lab.kill("controller ctl")
    await lab.restart("controller ctl")
    await lab.online("h1", "h2", "h3")
    ended = await lab.done(job)
    assert ended.result is not None
    assert ended.result["applied"] == ["disk 0 grown"]
    assert (await lab.vm(vm.name)).status.state is VmState.RUNNING
    count = await guest.stop_disk()
    assert (count.errors, count.verified > 0) == (0, True)
    assert await guest.boot_id() == boot
