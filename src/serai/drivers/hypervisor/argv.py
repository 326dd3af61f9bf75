"""From a launch to QEMU's command line: a pure function.

Both ends of a migration get the same devices at the same places from the same launch, so a place depends on a device's
index alone, never on what else there is:

| bus pcie.0, slot | what |
|---|---|
| 01.0–01.3 | root ports of disks 0–3 (can be plugged in and out) |
| 01.4–01.7 | root ports of VNICs 0–3 (likewise) |
| 02, 03 | virtio-serial, virtio-rng |
| 05–10 | disks 4–15 (fixed) |
| 11–1c | VNICs 4–15 (fixed) |
| 1d | cloud-init seed |

The ports of 0–3 are always there, used or not. There are no more of them since each costs firmware and guest time at
boot, and room in the last state of a migration. microvm has no PCI: its devices sit on virtio-mmio in the order given
here, and nothing can be plugged in.

No path of a disk, no secret and no socket's name is here: all are handed over as open descriptors, secrets in files.

How a guest's end is told apart (`-action`): a poweroff stops the machine and leaves it there (`shutdown=pause`), and so
does a panic, so that a watcher learns of it from the event, or later from the run state; machine.py then ends the
process. A reset is a reset. Asked to `quit`, or signalled, QEMU ends at once whatever `-action` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor.base import HostResources
from serai.schema.errors import InvalidError
from serai.schema.launch import Disk, FileDisk, IscsiDisk, Launch, VnicAttachment

BINARY = "qemu-system-x86_64"
MICROVM = "microvm"
PLUGGABLE = 4
"""Disks and VNICs with an index below this have a root port of their own."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
SERIAL_SLOT, RNG_SLOT, SEED_SLOT = 0x02, 0x03, 0x1D
FIXED_DISK_SLOT, FIXED_VNIC_SLOT = 0x05, 0x11
STANDARD_MTU = 1500
QUEUES_MAX = 4
"""Of a disk; each costs memory and a little of a migration's last state."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Features:
    """What this machine's QEMU was seen to have."""

    binary: str = BINARY
    suppress_vmdesc: bool = True
    """Nothing may follow the end mark of a migration stream: the commit point rests on that, see core/migration.py."""
    sandbox: bool = True
    q35_options: frozenset[str] = frozenset({"vmport", "hpet", "sata", "smbus", "smm"})
    """Options of the q35 machine that this QEMU knows, of those that we turn off."""
    tsc_khz: int | None = None
    """The time-stamp counter's rate for the command line of an emulated microvm's kernel; see tsc.py."""


@dataclass(frozen=True, slots=True)
class Handles:
    """What is handed over open: descriptor numbers, and the files with CHAP secrets, by disk index."""

    qmp: int
    console: int
    qga: int
    disks: Mapping[int, int] = field(default_factory=dict)
    seed: int | None = None
    secrets: Mapping[int, Path] = field(default_factory=dict)


def qemu_argv(
    launch: Launch, resources: HostResources, features: Features, handles: Handles, *, incoming: bool = False
) -> list[str]:
    """The whole command line. Raises InvalidError for a launch that no QEMU could be started from."""
    _check(launch, resources, handles)
    argv = [features.binary, "-name", f"guest={launch.vm},debug-threads=on", "-uuid", launch.uuid]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on"]
    if features.sandbox:
        argv += ["-sandbox", SANDBOX]
    argv += _board(launch, features)
    argv += ["-action", "shutdown=pause,reboot=reset,panic=shutdown,watchdog=reset", "-S"]
    if incoming:
        argv += ["-incoming", "defer"]
    argv += ["-chardev", f"socket,id=qmp,fd={handles.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    argv += _boot(launch, resources, features)
    argv += _ports(launch) + _channels(launch, handles)
    for disk in sorted(launch.disks, key=lambda disk: disk.index):
        argv += _disk(launch, disk, handles)
    argv += _seed(launch, handles)
    for vnic in sorted(launch.vnics, key=lambda vnic: vnic.index):
        netdev = f"tap,id=net{vnic.index},fd={resources.taps[vnic.index]},vhost=off"
        argv += ["-netdev", netdev, "-device", _text(vnic_device(launch.machine, vnic))]
    return argv


def _check(launch: Launch, resources: HostResources, handles: Handles) -> None:
    if launch.max_cpus < launch.cpus:
        raise InvalidError("fewer CPUs at most than at the start", field="max_cpus", value=launch.max_cpus)
    if launch.machine == MICROVM and launch.boot is None:
        raise InvalidError(
            "microvm boots a kernel only, no disk",
            field="machine",
            value=launch.machine,
            remedy="Use q35, or an image with a kernel of its own.",
        )
    if launch.boot is not None and resources.kernel is None:
        raise InvalidError("the image's kernel is not on this host", field="boot.image", value=launch.boot.image)
    for disk in launch.disks:
        given = handles.disks if isinstance(disk.source, FileDisk) else handles.secrets
        if disk.index not in given:
            raise InvalidError("nothing is given for this disk on this host", field="disks", value=disk.index)
    for vnic in launch.vnics:
        if vnic.index not in resources.taps:
            raise InvalidError("no tap is given for this VNIC on this host", field="vnics", value=vnic.index)


def _board(launch: Launch, features: Features) -> list[str]:
    if launch.machine == MICROVM:
        options = [MICROVM, "acpi=on", "rtc=on", "isa-serial=on", "pcie=off"]
    else:
        options = [launch.machine, *(f"{name}=off" for name in sorted(features.q35_options))]
    if features.suppress_vmdesc:
        options.append("suppress-vmdesc=on")
    smp = f"cpus={launch.cpus},maxcpus={launch.max_cpus},sockets=1,cores={launch.max_cpus},threads=1"
    board = ["-machine", ",".join(options), "-accel", launch.accel, "-cpu", launch.cpu]
    return [*board, "-smp", smp, "-m", f"size={launch.memory}B", "-rtc", "base=utc"]


def _boot(launch: Launch, resources: HostResources, features: Features) -> list[str]:
    if launch.boot is None:
        return ["-boot", "strict=on"]
    boot = ["-kernel", str(resources.kernel)]
    if resources.initrd is not None:
        boot += ["-initrd", str(resources.initrd)]
    cmdline = launch.boot.cmdline
    if features.tsc_khz is not None and "tsc_early_khz=" not in cmdline:
        cmdline = f"{cmdline} tsc_early_khz={features.tsc_khz}".lstrip()
    return [*boot, "-append", cmdline]


def _ports(launch: Launch) -> list[str]:
    if launch.machine == MICROVM:
        return []
    argv: list[str] = []
    for number, name in enumerate([_port("disk", i) for i in range(PLUGGABLE)] + [_port("net", i) for i in range(4)]):
        port = f"pcie-root-port,id={name},bus=pcie.0,addr=1.{number:x},chassis={number + 1},port={number + 1}"
        argv += ["-device", port + (",multifunction=on" if number == 0 else "")]
    return argv


def _port(kind: str, index: int) -> str:
    return f"port-{kind}{index}"


def _channels(launch: Launch, handles: Handles) -> list[str]:
    argv = ["-chardev", f"socket,id=console,fd={handles.console},server=on,wait=off", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=qga,fd={handles.qga},server=on,wait=off"]
    argv += [
        "-device",
        _text({"driver": _virtio(launch.machine, "serial"), "id": "serial"} | _slot(launch, SERIAL_SLOT)),
    ]
    argv += ["-device", "virtserialport,bus=serial.0,nr=1,chardev=qga,id=qga,name=org.qemu.guest_agent.0"]
    argv += ["-object", "rng-builtin,id=entropy"]
    rng = {"driver": _virtio(launch.machine, "rng"), "rng": "entropy", "id": "rng"}
    argv += ["-device", _text(rng | _slot(launch, RNG_SLOT))]
    if launch.machine != MICROVM:
        argv += ["-device", "pvpanic"]
    return argv


def _disk(launch: Launch, disk: Disk, handles: Handles) -> list[str]:
    argv: list[str] = []
    if isinstance(disk.source, IscsiDisk):
        argv += ["-object", _text(secret_object(disk.index) | {"file": str(handles.secrets[disk.index])})]
        protocol = iscsi_node(disk.index, disk.source)
    else:
        descriptor = handles.disks[disk.index]
        argv += ["-add-fd", f"fd={descriptor},set={fd_set(disk.index)}"]
        protocol = file_node(disk.index, fd_set(disk.index))
    argv += ["-blockdev", _json(protocol), "-blockdev", _json(format_node(disk.index))]
    return [*argv, "-device", _text(disk_device(launch, disk))]


def _seed(launch: Launch, handles: Handles) -> list[str]:
    if handles.seed is None:
        return []
    node = {"driver": "file", "node-name": "seed-file", "filename": "/dev/fdset/99", "read-only": True}
    # One queue: by itself QEMU makes one for each vCPU of the moment (see disk_device).
    device = {"driver": _virtio(launch.machine, "blk"), "drive": "seed", "id": "seed-dev", "num-queues": 1}
    device |= _slot(launch, SEED_SLOT)
    argv = ["-add-fd", f"fd={handles.seed},set=99", "-blockdev", _json(node)]
    argv += ["-blockdev", _json({"driver": "raw", "node-name": "seed", "file": "seed-file", "read-only": True})]
    return [*argv, "-device", _text(device)]


# --- what plugging in needs too ---------------------------------------------------------------------------------------


def fd_set(index: int) -> int:
    """The number of the descriptor set that disk `index` is in."""
    return 100 + index


def secret_object(index: int) -> Json:
    """The object with disk `index`'s CHAP secret, without the secret."""
    return {"qom-type": "secret", "id": f"disk{index}-chap"}


def file_node(index: int, set_number: int) -> Json:
    """The protocol node of a disk in a file that is handed over open."""
    return {
        "driver": "file",
        "node-name": f"disk{index}-file",
        "filename": f"/dev/fdset/{set_number}",
        "discard": "unmap",
    }


def iscsi_node(index: int, source: IscsiDisk) -> Json:
    """The protocol node of a disk at an iSCSI target; opened by libiscsi, with no cache on this host."""
    return {
        "driver": "iscsi",
        "node-name": f"disk{index}-file",
        "transport": "tcp",
        "portal": source.portal,
        "target": source.target,
        "lun": source.lun,
        "initiator-name": source.initiator,
        "user": source.user,
        "password-secret": f"disk{index}-chap",
        "cache": {"direct": True, "no-flush": False},
        "discard": "unmap",
    }


def format_node(index: int) -> Json:
    """The node that the device sees; all volumes are raw."""
    return {"driver": "raw", "node-name": f"disk{index}", "file": f"disk{index}-file", "discard": "unmap"}


def disk_device(launch: Launch, disk: Disk) -> Json:
    """The device. An I/O error stops the machine: the guest sees none while the storage is being brought back.

    Left to itself QEMU makes a queue for each vCPU of that moment, and two ends of a migration would differ once a vCPU
    had been plugged in. So the number comes from what never changes while the machine runs.
    """
    device: Json = {
        "driver": _virtio(launch.machine, "blk"),
        "id": f"disk{disk.index}-dev",
        "drive": f"disk{disk.index}",
        "werror": "stop",
        "rerror": "stop",
        "num-queues": min(launch.max_cpus, QUEUES_MAX),
        "bootindex": disk.index + 1,
    }
    if disk.serial:
        # What virtio-blk can carry.
        device["serial"] = disk.serial[:20]
    return device | _place(launch.machine, "disk", disk.index, FIXED_DISK_SLOT)


def vnic_device(machine: str, vnic: VnicAttachment) -> Json:
    """The device, without a boot ROM: no network boot, and no ROM to be equal on both ends."""
    device: Json = {
        "driver": _virtio(machine, "net"),
        "id": f"net{vnic.index}-dev",
        "netdev": f"net{vnic.index}",
        "mac": vnic.mac,
    }
    if machine != MICROVM:
        device["romfile"] = ""
    if vnic.mtu != STANDARD_MTU:
        device["host_mtu"] = vnic.mtu
    return device | _place(machine, "net", vnic.index, FIXED_VNIC_SLOT)


def _place(machine: str, kind: str, index: int, fixed: int) -> Json:
    if machine == MICROVM:
        return {}
    if index < PLUGGABLE:
        return {"bus": _port(kind, index), "addr": "0"}
    return {"bus": "pcie.0", "addr": f"{fixed + index - PLUGGABLE:x}"}


def _slot(launch: Launch, slot: int) -> Json:
    return {} if launch.machine == MICROVM else {"bus": "pcie.0", "addr": f"{slot:x}"}


def _virtio(machine: str, kind: str) -> str:
    return f"virtio-{kind}-{'device' if machine == MICROVM else 'pci'}"


def _json(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


def _text(value: Json) -> str:
    """`-device` and `-object` in QEMU's key=value form, the type first."""
    values = dict(value)
    first = values.pop("driver", None) or values.pop("qom-type")
    return ",".join([first, *(f"{key}={_escape(str(item))}" for key, item in values.items())])


def _escape(text: str) -> str:
    return text.replace(",", ",,")
