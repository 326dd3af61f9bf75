"""What a VM's spec means: which volumes are made, which addresses are taken.

After this a disk has pool, size and volume, and a VNIC has MAC and address: nothing is left to decide.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from pydantic import BaseModel

from serai.controller.api.checks import check_ssh_keys, need_image, need_pool, need_room
from serai.controller.api.volumes import check_holds
from serai.controller.store import Transaction, View
from serai.controller.store.networks import Address
from serai.core import ipam, userdata
from serai.lib.ids import new_id
from serai.lib.redact import MASK
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.ids import NAME_MAX, ImageId, NetworkId, VmId, VolumeId
from serai.schema.image import Image, ImageKind
from serai.schema.network import Network
from serai.schema.vm import CloudInit, DiskSpec, VnicSpec
from serai.schema.volume import Volume, VolumeSpec, VolumeState, VolumeStatus

ZERO = "00:00:00:00:00:00"
NO_MAC = "it means no address at all"
TAP_BYTE = 0xFE
TAPS = "addresses with fe: are those of the hosts' taps, and the VNIC's own tap might have this one"


@dataclass(frozen=True)
class Owner:
    """The VM that volumes are for; it may not be written yet."""

    id: VmId
    name: str


@dataclass(frozen=True)
class Disks:
    """`disks` for the spec; `made` are volumes to write; `taken` are existing ones that become the VM's."""

    disks: list[DiskSpec]
    made: list[Volume]
    taken: list[Volume]


@dataclass(frozen=True)
class Vnics:
    """`vnics` for the spec, and the addresses to hold."""

    vnics: list[VnicSpec]
    addresses: list[Address]


async def resolve_disks(
    view: View,
    vm: Owner,
    wanted: Sequence[DiskSpec],
    *,
    before: Sequence[DiskSpec] = (),
    image: Image | None = None,
    field: str = "spec.disks",
) -> Disks:
    """What becomes of the disks that are wanted of a VM. Those in `before` are its own already.

    `image`: what the first disk starts with, if it is a disk image. Raises SeraiError that names the field.
    """
    own = {disk.volume: disk for disk in before}
    found = Disks([], [], [])
    for index, disk in enumerate(wanted):
        here = f"{field}[{index}]"
        if disk.volume is None:
            base = image if index == 0 and not before else None
            made = await _new_volume(view, vm, disk, found.made, here, base)
            found.made.append(made)
            found.disks.append(
                disk.model_copy(update={"volume": made.id, "pool": made.spec.pool, "size": made.spec.size})
            )
            continue
        volume = await view.volumes.get(disk.volume, f"{here}.volume")
        if volume.id in [earlier.volume for earlier in found.disks]:
            raise InvalidError(
                "the volume is named twice", field=f"{here}.volume", value=volume.name, remedy="Name it once."
            )
        if volume.id in own:
            found.disks.append(await _own_disk(view, disk, volume, own[volume.id], here))
        else:
            found.disks.append(await _existing(view, disk, volume, here))
            found.taken.append(volume)
    return found


async def _own_disk(view: View, disk: DiskSpec, volume: Volume, before: DiskSpec, here: str) -> DiskSpec:
    remedy = f"Grow the volume instead: serai volume resize {volume.name} SIZE."
    if disk.pool is not None and disk.pool != before.pool:
        pool = await view.pools.get(disk.pool, f"{here}.pool")
        raise InvalidError("a disk's pool is not changed here", field=f"{here}.pool", value=pool.name, remedy=remedy)
    if disk.size is not None and disk.size != before.size:
        raise InvalidError("a disk's size is not changed here", field=f"{here}.size", value=disk.size, remedy=remedy)
    return before.model_copy(update={"keep": disk.keep})


async def _existing(view: View, disk: DiskSpec, volume: Volume, here: str) -> DiskSpec:
    if disk.pool is not None or disk.size is not None:
        raise InvalidError(
            "an existing volume has its pool and size already",
            field=f"{here}.volume",
            value=volume.name,
            remedy="Give either volume, or pool and size for a new one.",
        )
    if volume.status.vm is not None:
        raise ConflictError(
            f"VM {(await view.vms.get(volume.status.vm)).name} has volume {volume.name} already",
            field=f"{here}.volume",
            value=volume.name,
            remedy="Take it from that VM first.",
        )
    if volume.status.state is not VolumeState.READY:
        raise ConflictError(
            f"volume {volume.name} is {volume.status.state}",
            field=f"{here}.volume",
            value=volume.name,
            remedy="Wait until it is ready.",
        )
    await need_pool(view, volume.spec.pool, f"{here}.volume")
    # It was there before the VM, and stays when the VM goes.
    return DiskSpec(pool=volume.spec.pool, size=volume.spec.size, volume=volume.id, keep=True)


async def _new_volume(
    view: View, vm: Owner, disk: DiskSpec, made: Sequence[Volume], here: str, base: Image | None
) -> Volume:
    if disk.pool is None:
        raise InvalidError(
            "a disk needs a pool and a size, or an existing volume",
            field=f"{here}.pool",
            remedy="Give pool and size; see which pools there are: serai pool list.",
        )
    pool = await need_pool(view, disk.pool, f"{here}.pool")
    manifest = base.status.manifest if base is not None else None
    from_disk = base is not None and manifest is not None and manifest.kind is ImageKind.DISK
    size = disk.size
    if size is None and from_disk and manifest is not None:
        size = manifest.virtual_size
    if size is None:
        raise InvalidError("a new disk needs a size", field=f"{here}.size", remedy="Add a size, such as 4G.")
    if base is not None and from_disk:
        check_holds(base, size, f"{here}.size", "spec.image")
    need_room(pool, size, f"{here}.size")
    return await own_volume(
        view, vm, VolumeSpec(pool=pool.id, size=size, image=base.id if base is not None and from_disk else None), made
    )


async def own_volume(view: View, vm: Owner, spec: VolumeSpec, made: Sequence[Volume]) -> Volume:
    """A volume to be made for a VM, beside those of `made`."""
    return Volume(
        name=await _free_name(view, vm.name, {volume.name for volume in made}),
        id=new_id(VolumeId),
        generation=1,
        created=view.now,
        spec=spec,
        status=VolumeStatus(vm=vm.id, owner=vm.id),
    )


async def _free_name(view: View, vm: str, taken: set[str]) -> str:
    """Like `web1-disk0`: it tells people where the volume comes from, and nothing is derived from it."""
    number = 0
    while True:
        suffix = f"-disk{number}"
        name = vm[: NAME_MAX - len(suffix)].rstrip("-") + suffix
        if name not in taken and await view.volumes.named(name) is None:
            return name
        number += 1


async def resolve_vnics(view: View, vm_id: VmId, wanted: Sequence[VnicSpec], *, field: str = "spec.vnics") -> Vnics:
    """Choose MACs and addresses where none are given. Raises SeraiError."""
    found = Vnics([], [])
    used: dict[NetworkId, set[IPv4Address]] = {}
    others: dict[NetworkId, dict[IPv4Address, str]] = {}
    macs: set[str] = {vnic.mac for vnic in wanted if vnic.mac is not None}
    asked = [vnic.mac for vnic in wanted if vnic.mac is not None]
    for index, vnic in enumerate(wanted):
        here = f"{field}[{index}]"
        network = await view.networks.get(vnic.network, f"{here}.network")
        if network.id not in used:
            used[network.id] = await view.networks.used(network.id, but_vm=vm_id)
            others[network.id] = await _others(view, network, vm_id)
        taken = used[network.id] | set(others[network.id])
        if vnic.ip is not None:
            _refuse_others(others[network.id], vnic.ip, f"{here}.ip")
            ip = ipam.check(network.spec, vnic.ip, taken, field=f"{here}.ip")
        else:
            later = {other.ip for other in wanted if other.ip is not None}
            ip = ipam.next_free(network.spec, taken | later, name=network.name, field=f"{here}.network")
        used[network.id].add(ip)
        mac = vnic.mac
        if mac is not None:
            await _check_mac(view, vm_id, mac, asked, f"{here}.mac")
        else:
            mac = await _free_mac(view, vm_id, index, macs)
        macs.add(mac)
        found.vnics.append(VnicSpec(network=network.id, mac=mac, ip=ip))
        found.addresses.append(Address(network.id, ip, mac))
    return found


async def _others(view: View, network: Network, vm_id: VmId) -> dict[IPv4Address, str]:
    """Addresses on the network's wire that are not of its own VNICs, and whose they are."""
    found: dict[IPv4Address, str] = {}
    for host in await view.hosts.all():
        own = host.status.facts.addresses if host.status.facts is not None else {}
        for text in own.values():
            with contextlib.suppress(ValueError):  # of another family, or a name
                found[IPv4Address(text)] = f"host {host.name}"
    # Several networks may share a bridge, each with its range; an address that is asked for may be out of that.
    for other in await view.networks.all(view.networks.table.c.bridge == network.spec.bridge):
        if other.id != network.id and other.spec.subnet.overlaps(network.spec.subnet):
            used = await view.networks.used(other.id, but_vm=vm_id)
            found.update(dict.fromkeys(used, f"a VM on network {other.name}"))
            if other.spec.gateway not in (None, network.spec.gateway):
                found[other.spec.gateway] = f"the gateway of network {other.name}"
    return found


def _refuse_others(others: dict[IPv4Address, str], wanted: IPv4Address, field: str) -> None:
    if wanted in others:
        raise ConflictError(
            f"{others[wanted]} has the address",
            field=field,
            value=wanted,
            remedy="Choose another, or none: a free one is chosen then.",
        )


async def _check_mac(view: View, vm_id: VmId, mac: str, asked: list[str], field: str) -> None:
    first = int(mac[:2], 16)
    bad = "a multicast address" if first & 1 else NO_MAC if mac == ZERO else TAPS if first == TAP_BYTE else ""
    if bad:
        raise InvalidError(bad, field=field, value=mac, remedy="Choose 52:54:00:…, or none.")
    if asked.count(mac) > 1 or await view.networks.mac_taken(mac, but_vm=vm_id):
        raise ConflictError("the MAC is taken", field=field, value=mac, remedy="Choose another, or none.")


async def _free_mac(view: View, vm_id: VmId, index: int, macs: set[str]) -> str:
    attempt = 0
    while True:
        mac = ipam.mac(vm_id, index, attempt)
        if mac not in macs and not await view.networks.mac_taken(mac, but_vm=vm_id):
            return mac
        attempt += 1


async def check_boot(view: View, image: ImageId | None, disks: Sequence[DiskSpec]) -> Image | None:
    """The image, if the VM has one; there is something to boot from. Raises SeraiError."""
    if image is None:
        if not disks:
            raise InvalidError(
                "there is nothing to boot from",
                field="spec.image",
                remedy="Give an image (serai image list), or a disk that holds a system.",
            )
        return None
    found = await need_image(view, image, "spec.image")
    manifest = found.status.manifest
    if manifest is not None and manifest.kind is ImageKind.DISK and (not disks or disks[0].volume is not None):
        raise InvalidError(
            f"image {found.name} is copied to the VM's first disk, which must be a new one",
            field="spec.disks" if not disks else "spec.disks[0].volume",
            value=None if not disks or disks[0].volume is None else (await view.volumes.get(disks[0].volume)).name,
            remedy="Add a first disk with pool and size: --disk POOL:SIZE.",
        )
    return found


def check_seed(seed: CloudInit | None, image: Image | None, field: str) -> None:
    """What cloud-init is to read can be read, and somebody there reads it. Raises InvalidError."""
    if seed is None or not (seed.user_data or seed.ssh_keys):
        return
    check_ssh_keys(seed.ssh_keys, f"{field}.ssh_keys")
    userdata.check(seed.user_data, f"{field}.user_data")
    manifest = image.status.manifest if image is not None else None
    if manifest is None or not manifest.cloud_init:
        what = "a VM without an image" if image is None else f"image {image.name}"
        raise InvalidError(
            f"{what} has no cloud-init that would read keys or user-data",
            field=field,
            value=None if image is None else image.name,
            remedy="Leave them out, or use an image with cloud-init: serai image build debian.",
        )


async def write_disks(tx: Transaction, vm: Owner, found: Disks) -> None:
    """Write the new volumes, and note whose the existing ones are now."""
    for volume in found.made:
        await tx.volumes.insert(volume)
        await tx.emit("volume.created", f"volume/{volume.name}", volume.id, f"for VM {vm.name}")
    for volume in found.taken:
        await tx.volumes.update_status(volume.id, vm=vm.id)


def brief(body: BaseModel) -> dict[str, Any]:
    """A body's given fields, as JSON, for a job to show (see `masked`)."""
    return masked(body.model_dump(mode="json", exclude_unset=True))


def masked(fields: dict[str, Any]) -> dict[str, Any]:
    """A VM's fields without its user-data: that may hold passwords, and whoever may list jobs sees these."""
    seed = fields.get("cloud_init")
    if not seed or not seed.get("user_data"):
        return fields
    return {**fields, "cloud_init": {**seed, "user_data": MASK}}
