"""Volumes."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from serai.controller import edits
from serai.controller.api.absent import away, clean_later
from serai.controller.api.call import Api, Call, Handler, accepted
from serai.controller.api.checks import need_holder, need_image, need_pool, need_room, refuse_while
from serai.controller.api.references import respond, respond_page
from serai.controller.store.vms import ALIVE
from serai.controller.workflows.growth import EDIT_VOLUME, GrowParams, GrowState
from serai.controller.workflows.resources import (
    CREATE_VOLUME,
    DELETE_VOLUME,
    DeleteVolumeParams,
    VolumeParams,
)
from serai.core.edits import changes
from serai.lib.ids import new_id
from serai.schema.commands.volume import VOLUME_DELETE, DeleteVolume
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.ids import VolumeId
from serai.schema.image import Image, ImageKind
from serai.schema.units import format_size
from serai.schema.vm import Vm
from serai.schema.volume import Volume, VolumeCreate, VolumeEdit, VolumeState, VolumeStatus


async def list_(api: Api, call: Call) -> Response:
    """By name; `pool` and `vm` narrow it."""
    async with api.store.read() as view:
        table = view.volumes.table.c
        where = []
        if "pool" in call.query:
            where.append(table.pool == (await view.pools.find(call.query["pool"], "pool")).id)
        if "vm" in call.query:
            where.append(table.vm == (await view.vms.find(call.query["vm"], "vm")).id)
        return await respond_page(view, await view.volumes.page(call.limit, call.cursor, *where), Volume)


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return await respond(view, await view.volumes.find(call.name))


async def create(api: Api, call: Call) -> Response:
    """Write it down and let its pool's host make it."""
    body = call.need(VolumeCreate)
    async with api.store.transaction() as tx:
        pool = await need_pool(tx, body.spec.pool, "spec.pool")
        need_room(pool, body.spec.size, "spec.size")
        if body.spec.image is not None:
            image = await need_image(tx, body.spec.image, "spec.image")
            check_holds(image, body.spec.size, "spec.size", "spec.image")
        volume = Volume(
            kind="volume",
            name=body.name,
            id=new_id(VolumeId),
            generation=1,
            labels=body.labels,
            description=body.description,
            created=tx.now,
            spec=body.spec,
            status=VolumeStatus(),
        )
        await tx.volumes.insert(volume)
        await tx.emit("volume.created", f"volume/{volume.name}", volume.id, f"in {pool.name}")
        return accepted(await call.submit(api, tx, CREATE_VOLUME, volume, VolumeParams(volume=volume.id)))


async def edit(api: Api, call: Call) -> Response:
    """Grow it, describe it, label it."""
    body = call.need(VolumeEdit)
    async with api.store.transaction() as tx:
        volume = await tx.volumes.find(call.name)
        vm = None if body.size is None or volume.status.vm is None else await tx.vms.get(volume.status.vm)
        update: dict[str, Any] = {}
        if body.description is not None:
            update["description"] = body.description
        if body.labels is not None:
            update["labels"] = body.labels
        if body.size is not None and body.size != volume.spec.size:
            if volume.status.state is not VolumeState.READY:
                raise ConflictError(
                    f"volume {volume.name} is {volume.status.state}",
                    field="state",
                    value=volume.status.state,
                    remedy="Wait until it is ready.",
                )
            if body.size < volume.spec.size:
                raise InvalidError(
                    f"volume {volume.name} has {format_size(volume.spec.size)}, and volumes only grow",
                    field="size",
                    value=format_size(body.size),
                    remedy="Make a smaller volume and copy what is needed.",
                )
            need_room(await need_pool(tx, volume.spec.pool, "pool"), body.size - volume.spec.size, "size")
            if vm is not None and vm.status.state in ALIVE:
                await need_holder(tx, vm)
            update["spec"] = volume.spec.model_copy(update={"size": body.size})
        changed = volume.model_copy(update={**update, "generation": volume.generation + ("spec" in update)})
        await tx.volumes.replace(changed)
        await tx.emit("volume.changed", f"volume/{volume.name}", volume.id, "changed: " + ", ".join(update))
        if vm is not None and "spec" in update:
            await edits.follow_size(tx, changed)
        params = GrowParams(volume=volume.id, vm=None if vm is None else vm.id, size=body.size)
        state = GrowState(changes=changes(edits.volume_document(volume), edits.volume_document(changed)))
        return accepted(await call.submit(api, tx, EDIT_VOLUME, changed, params, state))


async def delete(api: Api, call: Call) -> Response:
    """Delete one that no VM has; by force also where its pool's host is offline."""
    async with api.store.transaction() as tx:
        volume = await tx.volumes.find(call.name)
        await refuse_while(
            tx, volume.id, "the volume is being deleted", "volume.delete", remedy="Wait for that job's end."
        )
        if volume.status.vm is not None:
            vm = await tx.vms.get(volume.status.vm)
            raise ConflictError(
                f"VM {vm.name} has volume {volume.name}",
                field="volume",
                value=volume.name,
                remedy=_way_out_of(vm, volume),
            )
        pool = await tx.pools.get(volume.spec.pool)
        host = await tx.hosts.need(pool.spec.host)
        absent = away(call, [host])
        if absent:
            body = DeleteVolume(pool=pool.id, volume=volume.id)
            await clean_later(call, tx, host, VOLUME_DELETE, body)
        params = DeleteVolumeParams(volume=volume.id, away=[one.name for one in absent])
        return accepted(await call.submit(api, tx, DELETE_VOLUME, volume, params))


def _way_out_of(vm: Vm, volume: Volume) -> str:
    """What frees a volume of a VM's: one that is in its spec no more is still open in a QEMU that runs."""
    if volume.id in [disk.volume for disk in vm.spec.disks]:
        return f"Take the disk from it first: serai vm edit {vm.name} --remove-disk {volume.name}."
    return f"It is free once the VM has restarted: serai vm restart {vm.name}."


def check_holds(image: Image, size: int, size_field: str, image_field: str) -> None:
    """Raises InvalidError unless a volume of `size` bytes can start with the image's content."""
    manifest = image.status.manifest
    if manifest is None:
        return
    if manifest.kind is not ImageKind.DISK:
        raise InvalidError(
            f"image {image.name} is a kernel, not a disk", field=image_field, value=image.name, remedy="Leave it out."
        )
    if size < manifest.virtual_size:
        raise InvalidError(
            f"image {image.name} needs {format_size(manifest.virtual_size)}",
            field=size_field,
            value=format_size(size),
            remedy=f"Ask for {format_size(manifest.virtual_size)} or more.",
        )


HANDLERS: dict[str, Handler] = {
    "volume.list": list_,
    "volume.show": show,
    "volume.create": create,
    "volume.edit": edit,
    "volume.delete": delete,
}
