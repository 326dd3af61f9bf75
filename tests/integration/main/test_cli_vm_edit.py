"""`serai vm edit|clone|rename` and templates on the standing lab: what the guest itself sees of a change, and when."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lab.state import LabFolder
from serai.lib import namespace, process
from serai.lib.ids import new_id
from serai.schema.vm import Vm, VmState

from .cli import Serai, misused, refused
from .terminal import Shell

CPUS = "cat /sys/devices/system/cpu/present"
DISKS = "cd /sys/block; echo vd*"
NICS = "cd /sys/class/net; echo eth*"


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


def named(lab: Lab) -> str:
    """A new VM's name; whatever becomes of it is deleted at the end."""
    name = f"t{new_id()[:6]}"
    lab.vms.append(name)
    return name


async def taps(lab: Lab, vm: Vm) -> list[str]:
    """The VM's taps on its host."""
    netns = LabFolder.of(lab.name).load().plan.netns(vm.status.host or "")
    links = (await process.run(["ip", "-n", netns, "-brief", "link"])).text
    return sorted(line.split()[0] for line in links.splitlines() if line.startswith(f"sv{vm.id[:10]}-"))


async def sum_of(lab: Lab, serai: Serai, volume: str) -> str:
    """The MD5 of a volume's file on its pool's host."""
    shown = (await serai.well("volume", "show", volume, "-o", "json")).json
    pool = (await serai.well("pool", "show", shown["spec"]["pool"], "-o", "json")).json
    state = LabFolder.of(lab.name).host(pool["spec"]["host"]) / "state"
    file = state / pool["status"]["path"].removeprefix("/var/lib/serai/") / f"{shown['id']}.raw"
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


async def test_what_can_be_changed_live_is_seen_by_the_guest_and_a_new_name_changes_nothing(
    lab: Lab, serai: Serai
) -> None:
    vm = await lab.create()
    name = vm.name
    async with Shell(serai.argv, name) as guest:
        assert [await guest.ask(what) for what in (CPUS, DISKS, NICS)] == ["0", "vda", "eth0"]
        words = ("--cpus", "2", "--add-disk", "shared0:16M", "--add-network", "lan")
        ran = await serai.well("vm", "edit", name, *words, "-o", "json")
        assert ran.json["result"] == {"applied": ["cpus", "disk 1 added", "vnic 1 added"], "pending": []}
        await guest.until(CPUS, "0-1")
        await guest.until(DISKS, "vda vdb")
        await guest.until(NICS, "eth0 eth1")
        changed = await lab.vm(name)
        await guest.until("cat /sys/class/net/eth1/address", changed.spec.vnics[1].mac or "")
        assert await guest.ask("cat /sys/block/vdb/size") == str((16 << 20) // 512)
        assert len(await taps(lab, changed)) == 2
        assert len(changed.status.addresses) == 2

    name = named(lab)
    assert (await serai.well("vm", "rename", vm.name, name)).out == f"vm {vm.name} is now {name}\n"
    after = await lab.vm(name)
    assert (after.id, after.spec.vnics, after.status.state) == (vm.id, changed.spec.vnics, VmState.RUNNING)
    assert [disk.volume for disk in after.spec.disks] == [f"{vm.name}-disk0", f"{vm.name}-disk1"]
    refused(await serai("vm", "show", vm.name), "vm", vm.name, "serai vm list")
    # It is the same VM, and what was plugged in goes along.
    moved = await serai.well("vm", "migrate", name, "--to", "h2")
    assert f"vm {name} moved from h1 to h2" in moved.out
    async with Shell(serai.argv, name) as guest:
        assert [await guest.ask(what) for what in (CPUS, DISKS, NICS)] == ["0-1", "vda vdb", "eth0 eth1"]
        ran = await serai.well("vm", "edit", name, "--remove-disk", "1", "--remove-network", "1")
        assert (ran.out, "pending" in ran.err) == (f"vm {name} changed\n", False)
        await guest.until(DISKS, "vda")
        await guest.until(NICS, "eth0")
    after = await lab.vm(name)
    assert len(await taps(lab, after)) == len(after.spec.disks) == len(after.status.addresses) == 1
    # The disk was taken away, not its data: it is a volume that anybody may use now.
    free = (await serai.well("volume", "show", f"{vm.name}-disk1", "-o", "json")).json
    assert (free["status"]["vm"], free["status"]["owner"]) == (None, None)
    await serai.well("volume", "delete", f"{vm.name}-disk1")


async def test_what_is_said_of_a_vm_changes_at_once(lab: Lab, serai: Serai) -> None:
    name = named(lab)
    await serai.well("vm", "create", name, "--image", "tiny", "--no-start", "--label", "a=1", "--label", "b=2")
    words = ("--label", "b=3", "--label", "c=4", "--remove-label", "a", "--description", "Some words")
    more = ("--autostart-order", "7", "--no-autostart", "--restart", "always")
    assert (await serai.well("vm", "edit", name, *words, *more)).out == f"vm {name} changed\n"
    vm = await lab.vm(name)
    assert (vm.labels, vm.description) == ({"b": "3", "c": "4"}, "Some words")
    assert (vm.spec.autostart_order, vm.spec.autostart, vm.spec.restart) == (7, False, "always")
    ran = await serai.well("vm", "edit", name, "--autostart", "--cpus", "3", "--memory", "64M", "-o", "json")
    assert ran.json["state"] == "done"
    vm = await lab.vm(name)
    assert (vm.spec.autostart, vm.spec.cpus, vm.spec.memory, vm.status.conditions) == (True, 3, 64 << 20, [])


async def test_what_needs_a_restart_is_pending_until_then_and_keeps_it_from_moving(lab: Lab, serai: Serai) -> None:
    vm = await lab.create(cpus=2)
    name = vm.name
    await serai.well("vm", "edit", name, "--add-disk", "shared0:16M", "--add-network", "lan")
    # A device's place in the list is its place in the machine: of two, the first cannot go at once.
    words = ("--cpus", "1", "--memory", "96M", "--remove-disk", "0", "--remove-network", "0")
    ran = await serai.well("vm", "edit", name, *words)
    waiting = (
        "cpus: CPUs cannot be taken from a running guest",
        "memory: memory cannot be changed live",
        "disks: disk 0 becomes another one, which needs a restart",
        "vnics: vnic 0 becomes another one, which needs a restart",
    )
    assert ran.err.splitlines()[-4:] == [f"pending-restart: {line}" for line in waiting]
    shown = (await serai.well("vm", "show", name)).out
    assert "running (restart pending)" in shown
    assert [line for line in waiting if line not in shown] == []
    async with Shell(serai.argv, name) as guest:
        assert [await guest.ask(what) for what in (CPUS, DISKS, NICS)] == ["0-1", "vda vdb", "eth0 eth1"]
    ran = await serai("vm", "migrate", name, "--to", "h2")
    refused(ran, "state", "pending-restart", f"Restart it (serai vm restart {name})")
    assert (await lab.vm(name)).status.host == "h1"
    # QEMU has it open: it is nobody else's yet.
    refused(await serai("volume", "delete", f"{name}-disk0"), "volume", f"{name}-disk0", "once the VM has restarted")

    await serai.well("vm", "stop", name)
    await serai.well("vm", "start", name)
    after = await lab.vm(name)
    await lab.guest(after).up()
    async with Shell(serai.argv, name) as guest:
        assert [await guest.ask(what) for what in (CPUS, DISKS, NICS)] == ["0", "vda", "eth0"]
        assert await guest.ask("cat /sys/block/vda/size") == str((16 << 20) // 512)
        assert await guest.ask("cat /sys/class/net/eth0/address") == after.spec.vnics[0].mac
        assert int((await guest.ask("free")).partition("Mem: ")[2].split()[0]) < 96 << 10
    assert "pending" not in (await serai.well("vm", "show", name)).out
    await serai.well("volume", "delete", f"{name}-disk0")
    await serai.well("vm", "migrate", name, "--to", "h2")


async def _wanted(serai: Serai, name: str) -> dict[str, Any]:
    """All that `vm show` says but the status, which goes on changing while a guest boots."""
    shown: dict[str, Any] = (await serai.well("vm", "show", name, "-o", "json")).json
    return {key: value for key, value in shown.items() if key != "status"}


async def test_edits_that_cannot_be(lab: Lab, serai: Serai) -> None:
    vm, other = await lab.create(), await lab.create(up=False, running=False)
    name, theirs = vm.name, f"{other.name}-disk0"
    address, mac = str(other.spec.vnics[0].ip), other.spec.vnics[0].mac or ""
    before = await _wanted(serai, name)
    for words, field, value, remedy in (
        (("--cpus", "0"), "cpus", "0", "Use at least 1."),
        (("--memory", "16M"), "memory", "16M", "Use at least 32M."),
        (("--memory", "lots"), "memory", "lots", "Write it like"),
        (("--memory", "9T"), "memory", "9T", "Ask for "),
        (("--restart", "often"), "restart", "often", "'on-failure'"),
        (("--add-disk", "nowhere:1G"), "disks[1].pool", "nowhere", "serai pool list"),
        (("--add-disk", "shared0:9T"), "disks[1].size", "9T", "Ask for less"),
        (("--add-disk", f"volume={theirs}"), "disks[1].volume", theirs, "Take it from that VM first."),
        (("--add-network", "none"), "vnics[1].network", "none", "serai network list"),
        (("--add-network", f"lan,ip={address}"), "vnics[1].ip", address, "Choose another"),
        (("--add-network", f"lan,mac={mac}"), "vnics[1].mac", mac, "Choose another, or none."),
        (("--template",), "template", "true", "Stop it first."),
    ):
        refused(await serai("vm", "edit", name, *words), field, value, remedy)
    misused(await serai("vm", "edit", name), "say what to change")
    misused(await serai("vm", "edit", name, "--remove-disk", "1"), f"the VM has no disk 1; it has: 0 ({name}-disk0)")
    misused(await serai("vm", "edit", name, "--remove-network", "4"), "the VM has no vnic 4; it has: 0 (52:54:")
    misused(await serai("vm", "edit", name, "--label", "tier"), "is not KEY=VALUE")
    refused(await serai("vm", "edit", "never", "--cpus", "2"), "vm", "never", "serai vm list")
    refused(await serai("vm", "rename", name, other.name), "rename", other.name, "Choose another name.")
    refused(await serai("vm", "rename", name, "No_Name"), "rename", "No_Name", "Use lower-case letters")
    refused(await serai("vm", "rename", "never", "ever"), "vm", "never", "serai vm list")
    refused(await serai("vm", "clone", name, "ever"), "state", "running", "Stop it first.")
    refused(await serai("vm", "clone", other.name, name), "name", name, "Choose another name.")
    assert await _wanted(serai, name) == before


async def test_a_template_never_runs_and_its_clone_has_the_data_and_an_address_of_its_own(
    lab: Lab, serai: Serai
) -> None:
    vm = await lab.create()
    guest = lab.guest(vm)
    await guest.write_disk()
    async with asyncio.timeout(PATIENCE):
        while not (await guest.disk()).written:
            await asyncio.sleep(0.1)
    count = await guest.stop_disk()
    assert (count.errors, count.verified > 0) == (0, True)
    async with Shell(serai.argv, vm.name) as shell:
        written = await shell.ask("md5sum /dev/vda")
    await serai.well("vm", "stop", vm.name)
    assert (await serai.well("vm", "edit", vm.name, "--template")).out == f"vm {vm.name} changed\n"
    refused(await serai("vm", "start", vm.name), "spec.template", "true", f"Clone it: serai vm clone {vm.name} NAME.")
    name = named(lab)
    assert (await serai.well("vm", "clone", vm.name, name)).out == f"vm {vm.name} cloned to {name}\n"
    clone = await lab.vm(name)
    assert (clone.status.state, clone.spec.template) == (VmState.STOPPED, False)
    assert clone.spec.vnics[0].mac != vm.spec.vnics[0].mac
    assert clone.spec.vnics[0].ip != vm.spec.vnics[0].ip
    assert await sum_of(lab, serai, f"{name}-disk0") == await sum_of(lab, serai, f"{vm.name}-disk0")
    assert await sum_of(lab, serai, f"{name}-disk0") == written.split()[0]
    # Both at once, and what one writes is not the other's.
    await serai.well("vm", "edit", vm.name, "--no-template")
    await serai.well("vm", "start", vm.name)
    await serai.well("vm", "start", name)
    await guest.up()
    await lab.guest(clone).up()
    await guest.write_disk()
    async with Shell(serai.argv, name) as shell:
        assert await shell.ask("md5sum /dev/vda") == written
        assert await shell.ask("cat /sys/class/net/eth0/address") == clone.spec.vnics[0].mac
    await guest.stop_disk()


async def test_what_a_full_pool_refuses_changes_nothing(lab: Lab, serai: Serai) -> None:
    """An edit with a new disk, and a growth: the controller has not heard how little is left, so the host says it."""
    vm, pool, place = await lab.create(), f"p{new_id()[:6]}", Path("/var/lib/serai/full")
    inside = namespace.enter_argv(None, LabFolder.of(lab.name).pin("h3"))
    await process.run([*inside, "mkdir", str(place)])
    await process.run([*inside, "mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "small", str(place)])
    try:
        await serai.well("pool", "create", pool, "--host", "h3", "--path", str(place))
        await serai.well("volume", "create", f"{pool}-v", "--pool", pool, "--size", "1M")
        await process.run([*inside, "dd", "if=/dev/zero", f"of={place}/notes", "bs=1M", "count=6"])
        ran = await serai("vm", "edit", vm.name, "--cpus", "2", "--add-network", "lan", "--add-disk", f"{pool}:4M")
        assert (ran.code, ran.out) == (1, "")
        assert "says: taken back" in ran.err
        refused(ran, "size", str(4 << 20), "Delete volumes")
        after = await lab.vm(vm.name)
        assert (after.spec, after.status.addresses) == (vm.spec, vm.status.addresses)
        volumes = (await serai.well("volume", "list", "-o", "name")).out
        assert f"{vm.name}-disk1" not in volumes
        ran = await serai("volume", "resize", f"{pool}-v", "4M")
        assert ran.code == 1
        shown = (await serai.well("volume", "show", f"{pool}-v", "-o", "json")).json
        assert (shown["spec"]["size"], shown["status"]["size"]) == (1 << 20, 1 << 20)
        # The VM is none the worse for it.
        await serai.well("vm", "edit", vm.name, "--cpus", "2", "--add-disk", "shared0:4M")
        async with Shell(serai.argv, vm.name) as guest:
            assert [await guest.ask(what) for what in (CPUS, DISKS, NICS)] == ["0-1", "vda vdb", "eth0"]
        await serai.well("volume", "delete", f"{pool}-v")
        await process.run([*inside, "rm", f"{place}/notes"])
        await serai.well("pool", "delete", pool)
    finally:
        await process.run([*inside, "umount", str(place)])
        await process.run([*inside, "rmdir", str(place)])
