"""The command line: golden, and the same place for a device whatever else there is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from serai.drivers.hypervisor.argv import Features, Handles, qemu_argv
from serai.drivers.hypervisor.base import HostResources
from serai.schema.errors import InvalidError
from serai.schema.ids import ImageId, PoolId, VolumeId
from serai.schema.launch import Disk, FileDisk, IscsiDisk, KernelBoot, Launch, VnicAttachment

VM = "0123456789ab"
UUID = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
SECRET = "a-secret-of-16-ch"
ISCSI = IscsiDisk(
    volume=VolumeId("00000000000b"),
    portal="10.78.0.11:3260",
    target="iqn.2025-01.org.serai:vol-00000000000b",
    lun=1,
    initiator="iqn.2025-01.org.serai:vm-0123456789ab-e1",
    user="vm-e1",
    password=SecretStr(SECRET),
)
FILE = FileDisk(pool=PoolId("00000000000a"), volume=VolumeId("00000000000c"))


def disk(index: int, source: FileDisk | IscsiDisk, serial: str = "") -> Disk:
    return Disk(index=index, name=f"d{index}", size=1 << 30, source=source, serial=serial)


def vnic(index: int, **more: Any) -> VnicAttachment:
    return VnicAttachment(index=index, mac=f"52:54:00:00:00:{index:02x}", bridge="br-lan", tap=f"sv-{index}", **more)


def launch(**changes: Any) -> Launch:
    values: dict[str, Any] = {
        "vm": VM,
        "name": "web1",
        "generation": 1,
        "machine": "pc-q35-10.0",
        "accel": "tcg",
        "cpus": 2,
        "max_cpus": 4,
        "memory": 768 << 20,
        "uuid": UUID,
        **changes,
    }
    return Launch.model_validate(values)


PLACING = HostResources(run_dir=Path("/run/serai/vms") / VM, taps={0: 20, 1: 21, 5: 25})
HANDLES = Handles(qmp=10, console=11, qga=12, disks={0: 13, 2: 14, 7: 15}, secrets={1: Path("/run/serai/disk1.chap")})

PORTS = [
    argument
    for number, (name, index) in enumerate([(n, i) for n in ("disk", "net") for i in range(4)])
    for argument in (
        "-device",
        f"pcie-root-port,id=port-{name}{index},bus=pcie.0,addr=1.{number},chassis={number + 1},port={number + 1}"
        + (",multifunction=on" if number == 0 else ""),
    )
]


def test_golden_q35() -> None:
    wanted = launch(disks=[disk(0, FILE, "root"), disk(1, ISCSI)], vnics=[vnic(0), vnic(1, mtu=9000)])
    handles = Handles(10, 11, 12, {0: 13}, 16, {1: Path("/run/serai/disk1.chap")})
    assert qemu_argv(wanted, PLACING, Features(), handles) == [
        *["qemu-system-x86_64", "-name", f"guest={VM},debug-threads=on", "-uuid", UUID],
        *["-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on"],
        *["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"],
        *["-machine", "pc-q35-10.0,hpet=off,sata=off,smbus=off,smm=off,vmport=off,suppress-vmdesc=on"],
        *["-accel", "tcg", "-cpu", "max", "-smp", "cpus=2,maxcpus=4,sockets=1,cores=4,threads=1"],
        *["-m", "size=805306368B", "-rtc", "base=utc"],
        *["-action", "shutdown=pause,reboot=reset,panic=shutdown,watchdog=reset", "-S"],
        *["-chardev", "socket,id=qmp,fd=10,server=on,wait=off", "-mon", "chardev=qmp,mode=control"],
        *["-boot", "strict=on"],
        *PORTS,
        *["-chardev", "socket,id=console,fd=11,server=on,wait=off", "-serial", "chardev:console"],
        *["-chardev", "socket,id=qga,fd=12,server=on,wait=off"],
        *["-device", "virtio-serial-pci,id=serial,bus=pcie.0,addr=2"],
        *["-device", "virtserialport,bus=serial.0,nr=1,chardev=qga,id=qga,name=org.qemu.guest_agent.0"],
        *["-object", "rng-builtin,id=entropy", "-device", "virtio-rng-pci,rng=entropy,id=rng,bus=pcie.0,addr=3"],
        *["-device", "pvpanic"],
        *["-add-fd", "fd=13,set=100", "-blockdev"],
        '{"driver":"file","node-name":"disk0-file","filename":"/dev/fdset/100","discard":"unmap"}',
        *["-blockdev", '{"driver":"raw","node-name":"disk0","file":"disk0-file","discard":"unmap"}', "-device"],
        "virtio-blk-pci,id=disk0-dev,drive=disk0,werror=stop,rerror=stop,num-queues=4,bootindex=1,serial=root,bus=port-disk0,addr=0",
        *["-object", "secret,id=disk1-chap,file=/run/serai/disk1.chap", "-blockdev"],
        '{"driver":"iscsi","node-name":"disk1-file","transport":"tcp","portal":"10.78.0.11:3260",'
        '"target":"iqn.2025-01.org.serai:vol-00000000000b","lun":1,'
        '"initiator-name":"iqn.2025-01.org.serai:vm-0123456789ab-e1","user":"vm-e1","password-secret":"disk1-chap",'
        '"cache":{"direct":true,"no-flush":false},"discard":"unmap"}',
        *["-blockdev", '{"driver":"raw","node-name":"disk1","file":"disk1-file","discard":"unmap"}', "-device"],
        "virtio-blk-pci,id=disk1-dev,drive=disk1,werror=stop,rerror=stop,num-queues=4,bootindex=2,bus=port-disk1,addr=0",
        *["-add-fd", "fd=16,set=99", "-blockdev"],
        '{"driver":"file","node-name":"seed-file","filename":"/dev/fdset/99","read-only":true}',
        *["-blockdev", '{"driver":"raw","node-name":"seed","file":"seed-file","read-only":true}'],
        *["-device", "virtio-blk-pci,drive=seed,id=seed-dev,num-queues=1,bus=pcie.0,addr=1d"],
        *["-netdev", "tap,id=net0,fd=20,vhost=off", "-device"],
        "virtio-net-pci,id=net0-dev,netdev=net0,mac=52:54:00:00:00:00,romfile=,bus=port-net0,addr=0",
        *["-netdev", "tap,id=net1,fd=21,vhost=off", "-device"],
        "virtio-net-pci,id=net1-dev,netdev=net1,mac=52:54:00:00:00:01,romfile=,host_mtu=9000,bus=port-net1,addr=0",
    ]


def test_golden_microvm() -> None:
    boot = KernelBoot(image=ImageId("00000000000d"), cmdline="console=ttyS0 quiet")
    resources = HostResources(
        run_dir=Path("/run"), kernel=Path("/i/vmlinuz"), initrd=Path("/i/initrd.img"), taps={0: 20}
    )
    argv = qemu_argv(
        launch(machine="microvm", boot=boot, vnics=[vnic(0)], max_cpus=2), resources, Features(), Handles(10, 11, 12)
    )
    assert argv[argv.index("-machine") + 1] == "microvm,acpi=on,rtc=on,isa-serial=on,pcie=off,suppress-vmdesc=on"
    assert argv[argv.index("-kernel") :][:6] == [
        *["-kernel", "/i/vmlinuz", "-initrd", "/i/initrd.img", "-append", "console=ttyS0 quiet"]
    ]
    assert argv[-1] == "virtio-net-device,id=net0-dev,netdev=net0,mac=52:54:00:00:00:00"
    assert not any("pcie.0" in argument or "pvpanic" in argument for argument in argv)


def test_an_emulated_microvm_is_told_its_counter_rate() -> None:
    resources = HostResources(run_dir=Path("/run"), kernel=Path("/i/vmlinuz"))
    told = Features(tsc_khz=2596142)

    def cmdline(own: str) -> str:
        boot = KernelBoot(image=ImageId("00000000000d"), cmdline=own)
        argv = qemu_argv(launch(machine="microvm", boot=boot), resources, told, Handles(10, 11, 12))
        return argv[argv.index("-append") + 1]

    assert cmdline("quiet") == "quiet tsc_early_khz=2596142"
    assert cmdline("") == "tsc_early_khz=2596142"
    assert cmdline("tsc_early_khz=1 quiet") == "tsc_early_khz=1 quiet"


def places(argv: list[str]) -> dict[str, str]:
    """Device id to bus and address."""
    found = {}
    for flag, device in pairwise(argv):
        if flag == "-device":
            keys = dict(part.partition("=")[::2] for part in device.split(","))
            if "addr" in keys:
                found[keys["id"]] = f"{keys['bus']}:{keys['addr']}"
    return found


def test_a_place_depends_on_the_index_alone() -> None:
    disks = [disk(0, FILE), disk(1, ISCSI), disk(2, FILE), disk(7, FILE)]
    vnics = [vnic(0), vnic(1), vnic(5)]
    whole = places(qemu_argv(launch(disks=disks, vnics=vnics), PLACING, Features(), HANDLES))
    part = places(qemu_argv(launch(disks=disks[2:], vnics=vnics[1:]), PLACING, Features(), HANDLES))
    assert part.items() <= whole.items()
    order = qemu_argv(launch(disks=disks[::-1], vnics=vnics[::-1]), PLACING, Features(), HANDLES)
    assert order == qemu_argv(launch(disks=disks, vnics=vnics), PLACING, Features(), HANDLES)


def test_no_two_devices_share_a_place() -> None:
    every = range(16)
    resources = HostResources(run_dir=Path("/run"), taps={index: 50 + index for index in every})
    handles = Handles(10, 11, 12, {index: 20 + index for index in every}, 40)
    wanted = launch(disks=[disk(index, FILE) for index in every], vnics=[vnic(index) for index in every])
    found = places(qemu_argv(wanted, resources, Features(), handles))
    assert len(found) == 8 + 2 + 16 + 16 + 1
    assert len(set(found.values())) == len(found)
    slots = {int(place.removeprefix("pcie.0:").partition(".")[0], 16) for place in found.values() if "pcie.0" in place}
    assert max(slots) < 0x1F  # the board's own devices


def test_secrets_stay_out() -> None:
    argv = qemu_argv(launch(disks=[disk(1, ISCSI)]), PLACING, Features(), HANDLES)
    assert SECRET not in "\0".join(argv)


def test_both_ends_of_a_move_differ_by_incoming_only() -> None:
    wanted = launch(disks=[disk(1, ISCSI)], vnics=[vnic(0)])
    here = qemu_argv(wanted, PLACING, Features(), HANDLES)
    there = qemu_argv(wanted, PLACING, Features(), HANDLES, incoming=True)
    at = there.index("-incoming")
    assert there[at : at + 2] == ["-incoming", "defer"]
    assert there[:at] + there[at + 2 :] == here


def test_what_qemu_lacks_is_left_out() -> None:
    argv = qemu_argv(launch(), PLACING, Features("qemu", False, False, frozenset({"smm"})), HANDLES)
    assert argv[0] == "qemu"
    assert argv[argv.index("-machine") + 1] == "pc-q35-10.0,smm=off"
    assert "-sandbox" not in argv


def test_a_comma_in_a_value_ends_nothing() -> None:
    argv = qemu_argv(launch(disks=[disk(0, FILE, serial="a,b")]), PLACING, Features(), HANDLES)
    assert any(",serial=a,,b," in word for word in argv)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (launch(cpus=4, max_cpus=2), "max_cpus"),
        (launch(machine="microvm"), "machine"),
        (launch(boot=KernelBoot(image=ImageId("00000000000d"))), "boot.image"),
        (launch(disks=[disk(9, FILE)]), "disks"),
        (launch(disks=[disk(0, ISCSI)]), "disks"),
        (launch(vnics=[vnic(3)]), "vnics"),
    ],
)
def test_what_cannot_be_started_is_named(wanted: Launch, field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        qemu_argv(wanted, PLACING, Features(), HANDLES)
    assert caught.value.info.field == field
