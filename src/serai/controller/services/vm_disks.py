"""A VM's disks: which volumes are made for it, and which existing ones become its own.

After this a disk has pool, size and volume: nothing is left to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serai.controller.services.checks import need_image, need_pool
from serai.controller.services.create import add
from serai.controller.store import Transaction, View
from serai.core.volume import check_holds, check_room
from serai.lib.ids import new_id
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.ids import NAME_MAX, ImageId, VmId, VolumeId
from serai.schema.image import Image
from serai.schema.vm import DiskSpec
from serai.schema.volume import Volume, VolumeCreate, VolumeSpec, VolumeState, VolumeStatus


@dataclass(frozen=True)
class Owner:
    """The VM that volumes are for; it may not be written yet."""

    id: VmId
    name: str


async def resolve_disks(
    tx: Transaction,
    vm: Owner,
    wanted: Sequence[DiskSpec],
    *,
    before: Sequence[DiskSpec] = (),
    image: Image | None = None,
    field: str = "spec.disks",
) -> list[DiskSpec]:
    """Write the volumes of the disks that are wanted of a VM; returns the disks for its spec. It has those in `before`.

    `image`: what the first disk starts with, if it is a disk image. Raises SeraiError that names the field.
    """
    own = {disk.volume: disk for disk in before}
    base = None if image is None or image.disk_size is None or before else image
    found: list[DiskSpec] = []
    for index, disk in enumerate(wanted):
        here = f"{field}[{index}]"
        if disk.volume is None:
            made = await _new_volume(tx, vm, disk, here, base if index == 0 else None)
            update = {"volume": made.id, "pool": made.spec.pool, "size": made.spec.size}
            found.append(disk.model_copy(update=update))
            continue
        volume = await tx.volumes.get(disk.volume, f"{here}.volume")
        if volume.id in [earlier.volume for earlier in found]:
            raise InvalidError(
                "the volume is named twice", field=f"{here}.volume", value=volume.name, remedy="Name it once."
            )
        if volume.id in own:
            found.append(await _own_disk(tx, disk, volume, own[volume.id], here))
        else:
            found.append(await _existing(tx, disk, volume, here))
            await tx.volumes.update_status(volume.id, vm=vm.id)
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


async def _new_volume(tx: Transaction, vm: Owner, disk: DiskSpec, here: str, base: Image | None) -> Volume:
    if disk.pool is None:
        raise InvalidError(
            "a disk needs a pool and a size, or an existing volume",
            field=f"{here}.pool",
            remedy="Give pool and size; see which pools there are: serai pool list.",
        )
    pool = await need_pool(tx, disk.pool, f"{here}.pool")
    size = base.disk_size if disk.size is None and base is not None else disk.size
    if size is None:
        raise InvalidError("a new disk needs a size", field=f"{here}.size", remedy="Add a size, such as 4G.")
    if base is not None:
        check_holds(base, size, f"{here}.size", "spec.image")
    check_room(pool, size, f"{here}.size")
    return await make_volume(tx, vm, VolumeSpec(pool=pool.id, size=size, image=None if base is None else base.id))


async def make_volume(tx: Transaction, vm: Owner, spec: VolumeSpec) -> Volume:
    """Write a new volume that is a VM's own; it is yet to be made on its host."""
    draft = VolumeCreate(name=await _free_name(tx, vm.name), spec=spec)
    status = VolumeStatus(vm=vm.id, owner=vm.id)
    return await add(tx, tx.volumes, new_id(VolumeId), draft, spec, status, f"for VM {vm.name}")


async def _free_name(view: View, vm: str) -> str:
    """Like `web1-disk0`: it tells people where the volume comes from, and nothing is derived from it."""
    number = 0
    while True:
        suffix = f"-disk{number}"
        name = vm[: NAME_MAX - len(suffix)].rstrip("-") + suffix
        if await view.volumes.named(name) is None:
            return name
        number += 1


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
    if found.disk_size is not None and (not disks or disks[0].volume is not None):
        raise InvalidError(
            f"image {found.name} is copied to the VM's first disk, which must be a new one",
            field="spec.disks" if not disks else "spec.disks[0].volume",
            value=None if not disks or disks[0].volume is None else (await view.volumes.get(disks[0].volume)).name,
            remedy="Add a first disk with pool and size: --disk POOL:SIZE.",
        )
    return found
