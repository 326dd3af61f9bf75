"""Brings a running VM to the launch that is wanted: live as far as that goes, the rest at its next start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor.base import Machine
from serai.host.kit import Kit
from serai.host.placing import make_tap
from serai.host.vm import VmAgent
from serai.schema.attach import KernelBoot, Launch, Seed, VnicAttachment
from serai.schema.commands.vm import ConfigureResult, ConfigureVm
from serai.schema.errors import SeraiError, UnsupportedError
from serai.schema.units import exact_size


async def configure(kit: Kit, agent: VmAgent, body: ConfigureVm) -> ConfigureResult:
    """Bring a VM to `body.launch` as far as it goes live; keep the launch for the next start."""
    async with agent.lock:
        before = agent.record.launch
        applied, pending, undo = [], [], {}
        for name, action in _changes(kit, agent, body).items():
            try:
                await action()
                applied.append(name)
            except SeraiError as error:
                pending.append(f"{name}: {error.info.message}")
                if options := _options(name, before, body.launch):
                    undo[pending[-1]] = options
        if not agent.gone.is_set() and body.launch.max_cpus != before.max_cpus:
            pending.append("the limit for more CPUs: it needs a restart, and the VM does not move until then")
        if not agent.gone.is_set():
            pending += _read_at_start(before, body.launch)
        launch, wanted = body.launch, None
        if not agent.gone.is_set():
            generation = before.generation if pending else body.launch.generation
            # The name is ours alone: QEMU's own changes nothing.
            ours = {"generation": generation, "name": body.launch.name}
            launch = agent.live_machine().launch.model_copy(update=ours)
            wanted = body.launch if launch != body.launch else None
        agent.update(
            launch=launch,
            next_launch=wanted,
            restart=body.restart,
            autostart=body.autostart,
            autostart_order=body.autostart_order,
        )
        agent.report()
        return ConfigureResult(applied=applied, pending=pending, undo=undo)


def _changes(kit: Kit, agent: VmAgent, body: ConfigureVm) -> dict[str, Any]:
    before, after = agent.record.launch, body.launch
    if agent.gone.is_set():
        return {}
    machine = agent.live_machine()
    changes: dict[str, Any] = {}
    if after.cpus != before.cpus:
        changes["cpus"] = lambda: machine.set_cpus(after.cpus)
    if after.memory != before.memory:
        changes["memory"] = lambda: machine.set_memory(after.memory)
    changes |= _disk_changes(kit, machine, before, after)
    old, new = {vnic.index: vnic for vnic in before.vnics}, {vnic.index: vnic for vnic in after.vnics}
    moved = [i for i in sorted(old.keys() & new.keys()) if _port(old[i]) != _port(new[i])]
    if moved:
        return changes | {"vnics": lambda: _needs_restart("vnic", moved[0])}
    for index in sorted(old.keys() - new.keys()):
        changes[f"vnic {index} removed"] = lambda index=index: machine.detach_vnic(index)
    for index in sorted(new.keys() - old.keys()):
        changes[f"vnic {index} added"] = lambda vnic=new[index]: _plug_vnic(kit, agent, vnic)
    return changes


def _disk_changes(kit: Kit, machine: Machine, before: Launch, after: Launch) -> dict[str, Any]:
    old, new = {disk.index: disk for disk in before.disks}, {disk.index: disk for disk in after.disks}
    moved = [i for i in sorted(old.keys() & new.keys()) if old[i].source.volume != new[i].source.volume]
    if moved:
        return {"disks": lambda: _needs_restart("disk", moved[0])}
    changes: dict[str, Any] = {}
    for index in sorted(old.keys() - new.keys()):
        changes[f"disk {index} removed"] = lambda index=index: machine.detach_disk(index)
    for index in sorted(new.keys() - old.keys()):
        changes[f"disk {index} added"] = lambda disk=new[index]: machine.attach_disk(disk, _path(kit, disk))
    for index in sorted(new.keys() & old.keys()):
        if new[index].size > old[index].size:
            changes[f"disk {index} grown"] = lambda disk=new[index]: machine.block_grow(disk.index, disk.size)
    return changes


async def _plug_vnic(kit: Kit, agent: VmAgent, vnic: Any) -> None:
    tap = await make_tap(kit, vnic, open_port=True)
    try:
        await agent.live_machine().attach_vnic(vnic, tap.fd)
    finally:
        tap.close()


def _path(kit: Kit, disk: Any) -> Path | None:
    return kit.disk_path(disk.source.pool, disk.source.volume) if disk.source.kind == "file" else None


def _port(vnic: VnicAttachment) -> tuple[str, str, int]:
    return vnic.mac, vnic.bridge, vnic.mtu


async def _needs_restart(what: str, index: int) -> None:
    """A device's place in the list is its place in the machine: one that would come to another's place waits.

    Then none of its kind is plugged either: after a first one was removed, the last place is not the one to clear.
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
    # The room for more CPUs stays what an edit made it: then the old number alone does not bring the old VM back.
    return f"--cpus {before.cpus}" if change == "cpus" and before.max_cpus == after.max_cpus else ""
