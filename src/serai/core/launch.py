"""From a VM's spec to a `Launch`: everything that one host needs to run it, with nothing left to decide.

Pure. Both ends of a migration get launches from here, equal but for the lease epoch and the host in their
disks' initiators.
CHAP passwords are derived, not stored: HMAC-SHA256 of VM, epoch and host under the installation's secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pydantic import SecretStr

from serai.schema.errors import ConflictError, UnsupportedError
from serai.schema.host import HostFacts
from serai.schema.ids import HostName, NetworkId, VmId
from serai.schema.image import Image, ImageKind
from serai.schema.launch import Admission, Disk, FileDisk, IscsiDisk, KernelBoot, Launch, Seed, VnicAttachment
from serai.schema.network import Network
from serai.schema.vm import MachineKind, Vm, VmSpec
from serai.schema.volume import ExportKind, Pool, Volume

NAMESPACE = uuid.UUID("6f1d2c0e-5a0b-5c1e-9b0a-5e7a15e7a101")
MAX_CPUS_FACTOR = 4
"""vCPUs may be plugged in up to this multiple of what the VM is created with, at least 4, at most 64."""


@dataclass(frozen=True)
class DiskPlan:
    """One disk of a VM: its volume, the pool it is in, and how an exported one is reached (none until admitted)."""

    volume: Volume
    pool: Pool
    portal: str = ""
    target: str = ""
    lun: int = 0


@dataclass(frozen=True)
class Parts:
    """A VM, and what its spec refers to; `disks` in the VM's order."""

    vm: Vm
    disks: Sequence[DiskPlan]
    networks: Mapping[NetworkId, Network]
    image: Image | None


def admission(secret: bytes, vm: VmId, epoch: int, host: HostName) -> Admission:
    """The right of a host to open a VM's volumes under one lease epoch.

    The host is in the name and in the secret: whoever was granted the same epoch by an older database gets in nowhere.
    """
    digest = hmac.new(secret, f"chap/{vm}/{epoch}/{host}".encode(), hashlib.sha256).hexdigest()[:32]
    return Admission(
        vm=vm,
        epoch=epoch,
        host=host,
        initiator=f"iqn.2026-01.io.serai:vm.{vm}.{epoch}.{host}",
        user=f"vm-{vm}-{epoch}-{host}",
        password=SecretStr(digest),
    )


_Q35 = re.compile(r"^pc-q35-(\d+)\.(\d+)$")


def pin_machine(kind: MachineKind, facts: HostFacts) -> str:
    """The versioned machine type for a new VM: the newest that the chosen host's QEMU has.

    Raises UnsupportedError where there is none.
    """
    if kind is MachineKind.MICROVM:
        if "microvm" in facts.machine_types:
            return "microvm"
        raise UnsupportedError("the host's QEMU has no microvm machine", field="spec.machine", value=kind)
    found = [(int(m[1]), int(m[2]), name) for name in facts.machine_types if (m := _Q35.match(name))]
    if not found:
        raise UnsupportedError("the host's QEMU has no versioned q35 machine", field="spec.machine", value=kind)
    return max(found)[2]


def room_for_cpus(spec: VmSpec, machine: str) -> int:
    """How many CPUs the VM can come to have while it runs: as its spec says; chosen where that is too little."""
    if spec.max_cpus is not None and spec.max_cpus >= spec.cpus:
        return spec.max_cpus
    if machine == "microvm" and spec.cpus == 1:
        return 1
    return max(spec.cpus, min(64, max(4, spec.cpus * MAX_CPUS_FACTOR)))


def check_machine(machine: str, facts: HostFacts, source: HostFacts | None, *, runs_on: str | None = None) -> None:
    """A host can run, or receive from `source`, this machine type. Raises ConflictError, before anything is prepared.

    `runs_on` is the acceleration that the VM runs with now; none: what its source has.
    """
    if machine not in facts.machine_types:
        raise ConflictError(
            f"the host's QEMU {facts.qemu_version} has no machine type {machine}",
            field="spec.machine_type",
            value=machine,
            remedy="Upgrade QEMU there, or choose another host.",
        )
    if source is None:
        return
    if machine == "microvm" and source.qemu_version != facts.qemu_version:
        raise ConflictError(
            f"microvm has no versioned machine type: it moves only between equal versions of QEMU, "
            f"not from {source.qemu_version} to {facts.qemu_version}",
            field="spec.machine",
            value=machine,
            remedy="Upgrade one of the hosts, or stop the VM and start it there.",
        )
    accel = runs_on or source.accel
    if accel != facts.accel:
        raise ConflictError(
            f"the VM runs with {accel}, the destination has {facts.accel}",
            field="to",
            remedy="Choose a host with the same acceleration, or stop the VM and start it there.",
        )
    if accel == "kvm":
        _check_processor(source, facts)
    elif _release(facts.qemu_version) < _release(source.qemu_version):
        raise ConflictError(
            f"an emulated VM has the processor that its QEMU emulates, and {facts.qemu_version} emulates less than "
            f"{source.qemu_version}",
            field="to",
            remedy="Upgrade QEMU there, or choose another host.",
        )


def _check_processor(source: HostFacts, facts: HostFacts) -> None:
    """On KVM a guest has its host's own processor: the other host's must be no other, and lack nothing."""
    if source.cpu_model != facts.cpu_model:
        raise ConflictError(
            f"the VM has its host's processor, {source.cpu_model or 'unknown'}, and the destination's is "
            f"{facts.cpu_model or 'unknown'}",
            field="to",
            remedy="Choose a host with the same processor, or stop the VM and start it there.",
        )
    lacks = sorted(set(source.cpu_flags) - set(facts.cpu_flags))
    if lacks:
        raise ConflictError(
            f"the destination's processor lacks {', '.join(lacks)}, which the VM's host has",
            field="to",
            remedy="Choose another host, or bring both to the same microcode and firmware settings.",
        )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number: what is fixed in between changes no processor."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def launch(parts: Parts, *, epoch: int, host: HostName, accel: str, machine: str, secret: bytes) -> Launch:
    """The launch of a VM on one host under one lease epoch."""
    vm = parts.vm
    spec = vm.spec
    manifest = parts.image.status.manifest if parts.image is not None else None
    vnics = [_vnic(vm, index, parts.networks[vnic.network]) for index, vnic in enumerate(spec.vnics)]
    boot = None
    if parts.image is not None and manifest is not None and manifest.kind is ImageKind.KERNEL:
        boot = KernelBoot(image=parts.image.id, cmdline=_cmdline(manifest.cmdline, vm, vnics, parts.networks))
    cloud_init = manifest is not None and manifest.cloud_init
    return Launch(
        vm=vm.id,
        name=vm.name,
        generation=vm.generation,
        machine=machine,
        accel="kvm" if accel == "kvm" else "tcg",
        cpu="host" if accel == "kvm" else "max",
        cpus=spec.cpus,
        max_cpus=room_for_cpus(spec, machine),
        memory=spec.memory,
        uuid=str(uuid.uuid5(NAMESPACE, vm.id)),
        boot=boot,
        disks=[_disk(index, plan, admission(secret, vm.id, epoch, host)) for index, plan in enumerate(parts.disks)],
        vnics=vnics,
        seed=seed(vm, parts.networks) if cloud_init else None,
    )


def _disk(index: int, plan: DiskPlan, right: Admission) -> Disk:
    source: FileDisk | IscsiDisk
    if plan.pool.spec.export is ExportKind.NONE:
        source = FileDisk(pool=plan.pool.id, volume=plan.volume.id)
    else:
        source = IscsiDisk(
            volume=plan.volume.id,
            portal=plan.portal,
            target=plan.target,
            lun=plan.lun,
            initiator=right.initiator,
            user=right.user,
            password=right.password,
        )
    size = plan.volume.status.size or plan.volume.spec.size
    return Disk(index=index, name=plan.volume.name, size=size, source=source, serial=plan.volume.id)


def _vnic(vm: Vm, index: int, network: Network) -> VnicAttachment:
    spec = vm.spec.vnics[index]
    ips = [IPv4Interface(f"{spec.ip}/{network.spec.subnet.prefixlen}")] if spec.ip is not None else []
    return VnicAttachment(
        index=index,
        mac=spec.mac or "",
        bridge=network.spec.bridge,
        tap=f"sv{vm.id[:10]}-{index}",
        mtu=network.spec.mtu,
        ips=ips,
    )


def _cmdline(base: str, vm: Vm, vnics: Sequence[VnicAttachment], networks: Mapping[NetworkId, Network]) -> str:
    """A kernel image has no cloud-init: its first address comes on the command line."""
    words = [base]
    if vnics and vnics[0].ips:
        words.append(f"serai.ip={vnics[0].ips[0]}")
        gateway = networks[vm.spec.vnics[0].network].spec.gateway
        if gateway is not None:
            words.append(f"serai.gw={gateway}")
    if vm.spec.cmdline:
        words.append(vm.spec.cmdline)
    return " ".join(words)


def seed(vm: Vm, networks: Mapping[NetworkId, Network]) -> Seed:
    """The NoCloud documents of cloud-init's data source of that name; JSON is YAML, too.

    The user's own user-data is handed over as it is; SSH keys go into meta-data, so that they never have to be merged.
    """
    meta: dict[str, object] = {"instance-id": vm.id, "local-hostname": vm.name}
    if vm.spec.cloud_init.ssh_keys:
        meta["public-keys"] = list(vm.spec.cloud_init.ssh_keys)
    ethernets: dict[str, object] = {}
    for index, vnic in enumerate(vm.spec.vnics):
        network = networks[vnic.network].spec
        card: dict[str, object] = {"match": {"macaddress": vnic.mac}, "set-name": f"eth{index}"}
        if vnic.ip is not None:
            card["addresses"] = [f"{vnic.ip}/{network.subnet.prefixlen}"]
        else:
            card["dhcp4"] = True
        if network.gateway is not None and index == 0:
            card["routes"] = [{"to": "0.0.0.0/0", "via": str(network.gateway)}]
        if network.nameservers:
            card["nameservers"] = {"addresses": [str(server) for server in network.nameservers]}
        ethernets[f"eth{index}"] = card
    return Seed(
        user_data=vm.spec.cloud_init.user_data or "#cloud-config\n{}\n",
        meta_data=json.dumps(meta, indent=1, sort_keys=True) + "\n",
        network_config=json.dumps({"version": 2, "ethernets": ethernets}, indent=1, sort_keys=True) + "\n",
    )
