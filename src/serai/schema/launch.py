"""How a VM's parts are attached on one host: all that QEMU's command line needs, with nothing left to decide.

A `Launch` is derived by the controller from a VM's spec and travels to the host that is to run it, with the secrets in
it (CHAP passwords).
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Annotated, Literal

from pydantic import Field

from serai.schema.encoding import Secret
from serai.schema.ids import HostName, ImageId, PoolId, VmId, VolumeId
from serai.schema.resource import Frozen


class FileDisk(Frozen):
    """A raw volume opened as a file: only where the pool is on the same host and not exported."""

    kind: Literal["file"] = "file"
    pool: PoolId
    volume: VolumeId


class IscsiDisk(Frozen):
    """A volume opened by QEMU through libiscsi. `initiator` is one per VM, epoch and host: a target can refuse it."""

    kind: Literal["iscsi"] = "iscsi"
    volume: VolumeId
    portal: str
    """`address:port`."""
    target: str
    lun: int
    initiator: str
    user: str
    password: Secret


class Disk(Frozen):
    """One disk of a VM. `index` fixes its place on the PCI bus; `serial` is what the guest sees."""

    index: int = Field(ge=0, le=15)
    name: str
    size: int
    source: Annotated[FileDisk | IscsiDisk, Field(discriminator="kind")]
    serial: str = ""


class VnicAttachment(Frozen):
    """One VNIC on one host. `tap` is at most 15 characters; `ips` are what is announced after a move."""

    index: int = Field(ge=0, le=15)
    mac: str
    bridge: str
    tap: str
    mtu: int = 1500
    ips: list[IPv4Interface] = Field(default_factory=list)


class Admission(Frozen):
    """The right of one host to open a volume under one lease epoch of a VM: an initiator name with its CHAP account."""

    vm: VmId
    epoch: int
    host: HostName
    initiator: str
    user: str
    password: Secret


class KernelBoot(Frozen):
    """Direct boot from an image's files, relative to the host's copy of the image."""

    image: ImageId
    kernel: str = "vmlinuz"
    initrd: str = "initrd.img"
    cmdline: str = ""


class Seed(Frozen):
    """cloud-init NoCloud documents; the host writes them to an ISO of its own."""

    user_data: str
    meta_data: str
    network_config: str


class Launch(Frozen):
    """All that a host needs to start one VM, or to receive it."""

    vm: VmId
    name: str
    generation: int
    machine: str
    """A versioned machine type (`pc-q35-10.0`), or `microvm`."""
    accel: Literal["kvm", "tcg"]
    cpu: str = "max"
    cpus: int = Field(ge=1)
    max_cpus: int = Field(ge=1)
    memory: int
    """Bytes."""
    uuid: str
    boot: KernelBoot | None = None
    disks: list[Disk] = Field(default_factory=list)
    vnics: list[VnicAttachment] = Field(default_factory=list)
    seed: Seed | None = None
