"""A VM's disks: which volumes are made for it, and which existing ones become its own.

After this a disk has pool, size and volume: nothing is left to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serai.controller.services.checks import need_image, need_pool
from serai.controller.store import Transaction, View
from serai.core.volume import check_holds, check_room
from serai.lib.ids import new_id
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.ids import NAME_MAX, ImageId, VmId, VolumeId
from serai.schema.image import Image, ImageKind
from serai.schema.vm import DiskSpec
from serai.schema.volume import Volume, VolumeSpec, VolumeState, VolumeStatus


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
    check_room(pool, size, f"{here}.size")
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


async def write_disks(tx: Transaction, vm: Owner, found: Disks) -> None:
    """Write the new volumes, and note whose the existing ones are now."""
    for volume in found.made:
        await tx.volumes.insert(volume)
        await tx.emit("volume.created", f"volume/{volume.name}", volume.id, f"for VM {vm.name}")
    for volume in found.taken:
        await tx.volumes.update_status(volume.id, vm=vm.id)
