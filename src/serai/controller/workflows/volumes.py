"""`volume.create` and `volume.delete`, and how other workflows make and remove volumes."""

from __future__ import annotations

from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow
from serai.controller.services import resources
from serai.controller.services.checks import need_online
from serai.controller.services.volumes import FREE
from serai.controller.workflows.common import AwayParams, say_what_is_left
from serai.controller.workflows.copies import with_copy
from serai.schema.commands.envelope import CommandProgress
from serai.schema.commands.volume import VOLUME_CREATE, VOLUME_DELETE, CreateVolume, DeleteVolume
from serai.schema.errors import SeraiError
from serai.schema.ids import VolumeId
from serai.schema.image import Image
from serai.schema.resource import Frozen
from serai.schema.volume import Volume, VolumeState

COPIED_WITHIN = 3600.0
"""Seconds in which a volume is copied: as long as its host reads all of another one."""


class VolumeParams(Frozen):
    volume: VolumeId


class DeleteVolumeParams(VolumeParams, AwayParams):
    pass


async def make(
    ctx: AnyContext, volume_id: VolumeId, *, image: Image | None = None, clone_of: VolumeId | None = None
) -> Volume:
    """Have a volume made, empty or with the content of an image or of another volume, unless it is there already."""
    async with ctx.store.read() as view:
        volume = await view.volumes.get(volume_id)
        pool = await view.pools.get(volume.spec.pool)
    if volume.status.state is VolumeState.READY:
        return volume
    size = volume.spec.size
    image_id = None if image is None else image.id
    body = CreateVolume(pool=pool.id, volume=volume.id, size=size, image=image_id, clone_of=clone_of)
    patience = None if clone_of is None else COPIED_WITHIN

    def progress(step: CommandProgress) -> None:
        ctx.progress(step.fraction, f"volume {volume.name}: {step.phase}")

    async def send() -> None:
        await ctx.send(VOLUME_CREATE, pool.spec.host, body, patience=patience, on_progress=progress)

    if image is None:
        await send()
    else:
        await with_copy(ctx, image, pool.spec.host, send)
    async with ctx.store.transaction() as tx:
        await resources.set_status(tx, tx.volumes, volume.id, state=VolumeState.READY, size=size, reason="")
    return volume


async def remove(ctx: AnyContext, volume_id: VolumeId, patience: float | None = None) -> None:
    """Have a volume deleted, and forget it. Raises NotFoundError."""
    async with ctx.store.read() as view:
        volume = await view.volumes.get(volume_id)
        pool = await view.pools.get(volume.spec.pool)
    body = DeleteVolume(pool=pool.id, volume=volume.id)
    await ctx.send(VOLUME_DELETE, pool.spec.host, body, patience=patience)
    async with ctx.store.transaction() as tx:
        await resources.forget(tx, tx.volumes, volume.id)


async def unmake(ctx: AnyContext, volume_id: VolumeId) -> str:
    """Remove a volume that a job had made, or begun to; a host that cannot be asked keeps it, and the text says so."""
    async with ctx.store.read() as view:
        volume = await view.volumes.seek(volume_id)
        if volume is None:
            return ""
        pool = await view.pools.get(volume.spec.pool)
        host = await view.hosts.need(pool.spec.host)
    refused = None
    try:
        need_online(host)
        await ctx.send(VOLUME_DELETE, host.name, DeleteVolume(pool=pool.id, volume=volume_id))
    except SeraiError as error:
        refused = error.info.message
    async with ctx.store.transaction() as tx:
        if refused is None:
            await resources.forget(tx, tx.volumes, volume_id)
            return ""
        reason = f"not removed: {refused}. Delete it when its host is back"
        await resources.set_status(tx, tx.volumes, volume_id, state=VolumeState.FAILED, reason=reason, **FREE)
    return f"volume {volume.name} could not be removed ({refused}): serai volume delete {volume.name}"


async def _make(ctx: JobContext[VolumeParams, NoState]) -> None:
    async with ctx.store.read() as view:
        image_id = (await view.volumes.get(ctx.params.volume)).spec.image
        image = None if image_id is None else await view.images.get(image_id)
    volume = await make(ctx, ctx.params.volume, image=image)
    ctx.result = {"size": volume.spec.size}


async def _unmake(ctx: JobContext[VolumeParams, NoState]) -> None:
    await remove(ctx, ctx.params.volume)


async def _delete(ctx: JobContext[DeleteVolumeParams, NoState]) -> None:
    if ctx.params.away:
        async with ctx.store.transaction() as tx:
            await resources.forget(tx, tx.volumes, ctx.params.volume)
    else:
        await remove(ctx, ctx.params.volume)
    say_what_is_left(ctx)


CREATE_VOLUME = Workflow("volume.create", VolumeParams, NoState, (Step("make", _make, undo=_unmake, repeatable=True),))
DELETE_VOLUME = Workflow("volume.delete", DeleteVolumeParams, NoState, (Step("delete", _delete, repeatable=True),))
