"""Live changes of a running QEMU's devices: disks, VNICs, vCPUs.

What is plugged in sits where argv.py would have put it, so that a migration's other end, started from the changed
launch, is the same machine. Each change is undone as a whole if one of its steps fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor import argv
from serai.drivers.hypervisor.base import MachineEvent, QmpError
from serai.drivers.hypervisor.qmp import Qmp
from serai.lib.rollback import Rollback
from serai.lib.timeouts import time_limit
from serai.schema.errors import ConflictError, InvalidError, UnavailableError, UnsupportedError
from serai.schema.launch import Disk, IscsiDisk, Launch, VnicAttachment

UNPLUG_TIMEOUT = 15.0
"""Seconds that a guest has to release a device; a guest that is still booting does not."""

Subscribe = Callable[[Callable[[MachineEvent], None]], Callable[[], None]]


def _pluggable(launch: Launch, what: str, index: int) -> None:
    if launch.machine == argv.MICROVM:
        raise UnsupportedError(
            f"a {argv.MICROVM} cannot have a {what} changed live", field=what, value=index, remedy="Restart the VM."
        )
    if index >= argv.PLUGGABLE:
        raise UnsupportedError(
            f"only the first {argv.PLUGGABLE} {what}s can be changed live",
            field=what,
            value=index,
            remedy="Restart the VM: it applies then.",
        )


async def attach_disk(qmp: Qmp, launch: Launch, disk: Disk, path: Path | None) -> Launch:
    """Plug a disk in; return the launch with it."""
    _pluggable(launch, "disk", disk.index)
    if any(present.index == disk.index for present in launch.disks):
        raise ConflictError("the VM has such a disk already", field="disk", value=disk.index)
    node = f"disk{disk.index}"
    async with Rollback() as undo:
        if isinstance(disk.source, IscsiDisk):
            secret = argv.secret_object(disk.index)
            await qmp.execute("object-add", secret | {"data": disk.source.password.get_secret_value()})
            undo.push("secret", lambda: qmp.execute("object-del", {"id": secret["id"]}))
            protocol = argv.iscsi_node(disk.index, disk.source)
        else:
            number = await _add_fd(qmp, path, disk.index)
            undo.push("descriptor", lambda: qmp.execute("remove-fd", {"fdset-id": number}))
            protocol = argv.file_node(disk.index, number)
        await qmp.execute("blockdev-add", protocol, timeout=30)
        undo.push("protocol node", lambda: qmp.execute("blockdev-del", {"node-name": f"{node}-file"}))
        await qmp.execute("blockdev-add", argv.format_node(disk.index))
        undo.push("format node", lambda: qmp.execute("blockdev-del", {"node-name": node}))
        device = argv.disk_device(launch, disk)
        await qmp.execute("device_add", device)
        undo.keep()
    return launch.model_copy(update={"disks": [*launch.disks, disk]})


async def _add_fd(qmp: Qmp, path: Path | None, index: int) -> int:
    if path is None:
        raise InvalidError("no file is given for this disk on this host", field="disk", value=index)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = await qmp.execute_with_fd(descriptor, "add-fd", {"fdset-id": argv.fd_set(index)})
    finally:
        os.close(descriptor)
    return int(answer["fdset-id"])


async def detach_disk(qmp: Qmp, subscribe: Subscribe, launch: Launch, index: int) -> Launch:
    """Unplug a disk; return the launch without it."""
    _pluggable(launch, "disk", index)
    disk = next((disk for disk in launch.disks if disk.index == index), None)
    if disk is None:
        raise ConflictError("the VM has no such disk", field="disk", value=index)
    await _unplug(qmp, subscribe, f"disk{index}-dev")
    await qmp.execute("blockdev-del", {"node-name": f"disk{index}"})
    await qmp.execute("blockdev-del", {"node-name": f"disk{index}-file"})
    if isinstance(disk.source, IscsiDisk):
        await qmp.execute("object-del", {"id": argv.secret_object(index)["id"]})
    else:
        # QEMU may have dropped the set by itself with its last user.
        with contextlib.suppress(QmpError):
            await qmp.execute("remove-fd", {"fdset-id": argv.fd_set(index)})
    return launch.model_copy(update={"disks": [present for present in launch.disks if present.index != index]})


async def attach_vnic(qmp: Qmp, launch: Launch, vnic: VnicAttachment, descriptor: int) -> Launch:
    """Plug a VNIC in; return the launch with it."""
    _pluggable(launch, "vnic", vnic.index)
    if any(present.index == vnic.index for present in launch.vnics):
        raise ConflictError("the VM has such a VNIC already", field="vnic", value=vnic.index)
    name = f"net{vnic.index}"
    async with Rollback() as undo:
        await qmp.execute_with_fd(descriptor, "getfd", {"fdname": f"{name}-fd"})
        try:
            await qmp.execute("netdev_add", {"type": "tap", "id": name, "fd": f"{name}-fd", "vhost": False})
        except BaseException:
            with contextlib.suppress(QmpError):
                await qmp.execute("closefd", {"fdname": f"{name}-fd"})
            raise
        undo.push("netdev", lambda: qmp.execute("netdev_del", {"id": name}))
        await qmp.execute("device_add", argv.vnic_device(launch.machine, vnic))
        undo.keep()
    return launch.model_copy(update={"vnics": [*launch.vnics, vnic]})


async def detach_vnic(qmp: Qmp, subscribe: Subscribe, launch: Launch, index: int) -> Launch:
    """Unplug a VNIC; return the launch without it."""
    _pluggable(launch, "vnic", index)
    if all(vnic.index != index for vnic in launch.vnics):
        raise ConflictError("the VM has no such VNIC", field="vnic", value=index)
    await _unplug(qmp, subscribe, f"net{index}-dev")
    await qmp.execute("netdev_del", {"id": f"net{index}"})
    return launch.model_copy(update={"vnics": [present for present in launch.vnics if present.index != index]})


async def _unplug(qmp: Qmp, subscribe: Subscribe, device: str) -> None:
    async with _deleted(subscribe, device) as deleted:
        try:
            await qmp.execute("device_del", {"id": device})
        except QmpError as error:
            # Asked again while the guest is still at it: go on waiting. Any other refusal is one.
            if "already in the process of unplug" not in error.reason:
                raise
        try:
            async with time_limit(UNPLUG_TIMEOUT):
                await deleted
        except TimeoutError:
            raise UnavailableError(
                f"the guest did not release {device.removesuffix('-dev')} within {UNPLUG_TIMEOUT:g} s",
                field="device",
                value=device,
                remedy="Try again once the guest is up, or restart the VM.",
            ) from None


@asynccontextmanager
async def _deleted(subscribe: Subscribe, device: str) -> AsyncIterator[asyncio.Future[None]]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_event(event: MachineEvent) -> None:
        if done.done() or event.data.get("device") != device:
            return
        if event.name == "DEVICE_DELETED":
            done.set_result(None)
        elif event.name == "DEVICE_UNPLUG_GUEST_ERROR":
            done.set_exception(UnavailableError(f"the guest refused to release {device}"))

    forget = subscribe(on_event)
    try:
        yield done
    finally:
        forget()
        done.cancel()


async def set_cpus(qmp: Qmp, launch: Launch, count: int) -> Launch:
    """Plug vCPUs in, in the order in which `-smp` would have filled the sockets; return the launch with them."""
    if count < launch.cpus:
        raise UnsupportedError(
            "CPUs cannot be taken from a running guest", field="cpus", value=count, remedy="Restart the VM."
        )
    if count > launch.max_cpus or launch.machine == argv.MICROVM:
        raise UnsupportedError(
            f"this VM was started with room for {launch.max_cpus} CPUs",
            field="cpus",
            value=count,
            remedy="Restart the VM.",
        )
    slots: list[dict[str, Any]] = await qmp.execute("query-hotpluggable-cpus")
    order = ("socket-id", "die-id", "module-id", "core-id", "thread-id")
    slots.sort(key=lambda slot: [slot["props"].get(name, 0) for name in order])
    plugged = sum("qom-path" in slot for slot in slots)
    for number, slot in enumerate(slots):
        if "qom-path" not in slot and plugged < count:
            await qmp.execute("device_add", {"driver": slot["type"], "id": f"cpu{number}", **slot["props"]})
            plugged += 1
    return launch.model_copy(update={"cpus": count})
