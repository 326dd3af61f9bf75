"""Brings a running VM to the launch that is wanted: live as far as that goes, the rest at its next start."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from serai.drivers.hypervisor.base import Machine
from serai.host.store import VmRecord
from serai.host.vm.resources import VmResources
from serai.schema.commands.vm import ConfigureResult
from serai.schema.errors import ConflictError, SeraiError, UnsupportedError
from serai.schema.launch import Disk, KernelBoot, Launch, Seed, VnicAttachment
from serai.schema.units import exact_size

Change = Callable[[], Awaitable[None]]
DeviceT = TypeVar("DeviceT", Disk, VnicAttachment)


async def reconfigure(machine: Machine, resources: VmResources, before: Launch, after: Launch) -> ConfigureResult:
    """Change what can be changed live from `before` to `after`; name what needs a restart, and how to take it back."""
    applied, pending, undo = [], [], {}
    for name, change in _changes(machine, resources, before, after).items():
        try:
            await change()
            applied.append(name)
        except SeraiError as error:
            pending.append(f"{name}: {error.info.message}")
            if options := _options(name, before, after):
                undo[pending[-1]] = options
    if after.max_cpus != before.max_cpus:
        pending.append("the limit for more CPUs: it needs a restart, and the VM does not move until then")
    return ConfigureResult(applied=applied, pending=pending + _read_at_start(before, after), undo=undo)


def check_runs_as_wanted(record: VmRecord) -> None:
    """Raise ConflictError for a VM that runs with another shape than it is to have after a restart.

    The destination of a move is started from what is wanted, and QEMU takes the state only of a source like it.
    """
    wanted = record.next_launch
    if wanted is not None and _shape(record.launch) != _shape(wanted):
        raise ConflictError(
            f"VM {record.launch.name} runs with other CPUs, memory or devices than it is to have after a restart",
            field="state",
            value="pending-restart",
            remedy=f"Restart it (serai vm restart {record.launch.name}), "
            "so that the pending changes apply, or take them back; then it moves.",
        )


def _shape(launch: Launch) -> tuple[object, ...]:
    disks = [(disk.index, disk.source.volume) for disk in launch.disks]
    vnics = [(vnic.index, vnic.mac) for vnic in launch.vnics]
    return launch.machine, launch.cpus, launch.max_cpus, launch.memory, sorted(disks), sorted(vnics)


def _changes(machine: Machine, resources: VmResources, before: Launch, after: Launch) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    if after.cpus != before.cpus:
        changes["cpus"] = functools.partial(machine.set_cpus, after.cpus)
    if after.memory != before.memory:
        changes["memory"] = functools.partial(machine.set_memory, after.memory)
    changes |= _devices(
        "disk",
        {disk.index: disk for disk in before.disks},
        {disk.index: disk for disk in after.disks},
        lambda disk: disk.source.volume,
        machine.detach_disk,
        functools.partial(_plug_disk, machine, resources),
    )
    if "disks" not in changes:
        old = {disk.index: disk.size for disk in before.disks}
        for disk in sorted(after.disks, key=lambda disk: disk.index):
            if disk.size > old.get(disk.index, disk.size):
                changes[f"disk {disk.index} grown"] = functools.partial(machine.block_grow, disk.index, disk.size)
    return changes | _devices(
        "vnic",
        {vnic.index: vnic for vnic in before.vnics},
        {vnic.index: vnic for vnic in after.vnics},
        lambda vnic: (vnic.mac, vnic.bridge, vnic.mtu),
        machine.detach_vnic,
        functools.partial(_plug_vnic, machine, resources),
    )


def _devices(
    what: str,
    old: Mapping[int, DeviceT],
    new: Mapping[int, DeviceT],
    identity: Callable[[DeviceT], object],
    remove: Callable[[int], Awaitable[None]],
    add: Callable[[DeviceT], Awaitable[None]],
) -> dict[str, Change]:
    """Devices of a kind by index: those that go, and those that come."""
    moved = [index for index in sorted(old.keys() & new.keys()) if identity(old[index]) != identity(new[index])]
    if moved:
        return {f"{what}s": functools.partial(_needs_restart, what, moved[0])}
    gone = {f"{what} {index} removed": functools.partial(remove, index) for index in sorted(old.keys() - new.keys())}
    come = {f"{what} {index} added": functools.partial(add, new[index]) for index in sorted(new.keys() - old.keys())}
    return {**gone, **come}


async def _plug_disk(machine: Machine, resources: VmResources, disk: Disk) -> None:
    await machine.attach_disk(disk, resources.disk_file(disk))


async def _plug_vnic(machine: Machine, resources: VmResources, vnic: VnicAttachment) -> None:
    tap = await resources.ports.create(vnic, open_port=True)
    try:
        await machine.attach_vnic(vnic, tap.fd)
    finally:
        tap.close()


async def _needs_restart(what: str, index: int) -> None:
    """A device's index is its slot in the machine: one that would take another's slot waits for a restart.

    Then no device of its kind is changed live: once the first one is removed, the last slot is not the one to clear.
    """
    raise UnsupportedError(
        f"{what} {index} becomes another one, which needs a restart", field=what, value=index, remedy="Restart the VM."
    )


def _read_at_start(before: Launch, after: Launch) -> list[str]:
    """What was asked for and the guest reads only when it starts; not what follows from its VNICs and its name."""
    found = []
    if before.boot is not None and after.boot is not None and _own_words(before.boot) != _own_words(after.boot):
        found.append("cmdline: the kernel reads it when the VM starts")
    if before.seed is not None and after.seed is not None:
        was, now = before.seed, after.seed
        if (was.user_data, _keys(was)) != (now.user_data, _keys(now)):
            found.append("cloud-init: keys and user-data are read when the VM starts")
    return found


def _own_words(boot: KernelBoot) -> list[str]:
    return [word for word in boot.cmdline.split() if not word.startswith(("serai.ip=", "serai.gw="))]


def _keys(seed: Seed) -> object:
    return json.loads(seed.meta_data).get("public-keys")


def _options(change: str, before: Launch, after: Launch) -> str:
    """The options of `serai vm edit` that take a change back; empty where no options do."""
    if change == "memory":
        return f"--memory {exact_size(before.memory)}"
    # The room for more CPUs stays as an edit made it, so the old number alone does not bring the old VM back.
    return f"--cpus {before.cpus}" if change == "cpus" and before.max_cpus == after.max_cpus else ""
