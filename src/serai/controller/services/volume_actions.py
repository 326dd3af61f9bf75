"""Volumes: made, edited and deleted."""

from __future__ import annotations

from typing import Any

from serai.controller.services import edits
from serai.controller.services.absent import leave_out
from serai.controller.services.checks import need_holder, need_image, need_pool, refuse_while
from serai.controller.services.create import add
from serai.controller.services.requester import Action, Requester
from serai.controller.store import Transaction
from serai.controller.workflows.growth import EDIT_VOLUME, GrowParams, GrowState
from serai.controller.workflows.volumes import CREATE_VOLUME, DELETE_VOLUME, DeleteVolumeParams, VolumeParams
from serai.core.edits import changes, given, volume_document
from serai.core.observed import ALIVE
from serai.core.volume import check_holds, check_room
from serai.lib.ids import new_id
from serai.schema.commands.volume import VOLUME_DELETE, DeleteVolume
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.ids import VolumeId
from serai.schema.job import Job
from serai.schema.units import format_size
from serai.schema.vm import Vm
from serai.schema.volume import Volume, VolumeCreate, VolumeEdit, VolumeState, VolumeStatus


async def create(tx: Transaction, requester: Requester, body: VolumeCreate) -> Job:
    """Write it down and let its pool's host make it."""
    pool = await need_pool(tx, body.spec.pool, "spec.pool")
    check_room(pool, body.spec.size, "spec.size")
    if body.spec.image is not None:
        image = await need_image(tx, body.spec.image, "spec.image")
        check_holds(image, body.spec.size, "spec.size", "spec.image")
    volume = await add(tx, tx.volumes, new_id(VolumeId), body, body.spec, VolumeStatus(), f"in {pool.name}")
    return await requester.submit(tx, CREATE_VOLUME, volume, VolumeParams(volume=volume.id))


async def edit(tx: Transaction, requester: Requester, volume: Volume, body: VolumeEdit) -> Job:
    """Grow it, describe it, label it."""
    vm = None if body.size is None or volume.status.vm is None else await tx.vms.get(volume.status.vm)
    update: dict[str, Any] = given(body, "description", "labels")
    if body.size is not None and body.size != volume.spec.size:
        await _check_growth(tx, volume, body.size)
        if vm is not None and vm.status.state in ALIVE:
            await need_holder(tx, vm)
        update["spec"] = volume.spec.model_copy(update={"size": body.size})
    changed = volume.model_copy(update={**update, "generation": volume.generation + ("spec" in update)})
    await tx.volumes.replace(changed)
    await tx.emit("volume.changed", f"volume/{volume.name}", volume.id, "changed: " + ", ".join(update))
    if vm is not None and "spec" in update:
        await edits.follow_size(tx, changed)
    params = GrowParams(volume=volume.id, vm=None if vm is None else vm.id, size=body.size)
    state = GrowState(changes=changes(volume_document(volume), volume_document(changed)))
    return await requester.submit(tx, EDIT_VOLUME, changed, params, state)


async def _check_growth(tx: Transaction, volume: Volume, size: int) -> None:
    if volume.status.state is not VolumeState.READY:
        raise ConflictError(
            f"volume {volume.name} is {volume.status.state}",
            field="state",
            value=volume.status.state,
            remedy="Wait until it is ready.",
        )
    if size < volume.spec.size:
        raise InvalidError(
            f"volume {volume.name} has {format_size(volume.spec.size)}, and volumes only grow",
            field="size",
            value=format_size(size),
            remedy="Make a smaller volume and copy what is needed.",
        )
    check_room(await need_pool(tx, volume.spec.pool, "pool"), size - volume.spec.size, "size")


async def delete(tx: Transaction, requester: Requester, volume: Volume, *, force: bool = False) -> Job:
    """Delete one that no VM has; by force also where its pool's host is offline."""
    await refuse_while(tx, volume.id, "the volume is being deleted", "volume.delete")
    if volume.status.vm is not None:
        vm = await tx.vms.get(volume.status.vm)
        raise ConflictError(
            f"VM {vm.name} has volume {volume.name}",
            field="volume",
            value=volume.name,
            remedy=_way_out_of(vm, volume),
        )
    pool = await tx.pools.get(volume.spec.pool)
    hosts, body = [await tx.hosts.need(pool.spec.host)], DeleteVolume(pool=pool.id, volume=volume.id)
    away = await leave_out(tx, requester, volume, hosts, VOLUME_DELETE, body, force=force)
    return await requester.submit(tx, DELETE_VOLUME, volume, DeleteVolumeParams(volume=volume.id, away=away))


def _way_out_of(vm: Vm, volume: Volume) -> str:
    """What frees a volume of a VM's: one that is in its spec no more is still open in a QEMU that runs."""
    if volume.id in [disk.volume for disk in vm.spec.disks]:
        return f"Take the disk from it first: serai vm edit {vm.name} --remove-disk {volume.name}."
    return f"It is free once the VM has restarted: serai vm restart {vm.name}."


ACTIONS: dict[str, Action] = {"volume.create": create, "volume.edit": edit, "volume.delete": delete}
