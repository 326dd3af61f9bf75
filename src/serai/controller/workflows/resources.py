"""Pools, volumes, images, networks: their long actions."""

from __future__ import annotations

from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow
from serai.controller.workflows import copies
from serai.controller.workflows.common import Office, facts_of, make_volume
from serai.schema.commands.image import IMAGE_DELETE, DeleteImage
from serai.schema.commands.pool import POOL_CLOSE, POOL_OPEN, ClosePool, OpenPool
from serai.schema.commands.uplink import UPLINK_CONFIRM, UPLINK_TAKE, ConfirmUplink, TakeUplink
from serai.schema.commands.volume import VOLUME_DELETE, DeleteVolume
from serai.schema.errors import UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostId, HostName, ImageId, PoolId, VolumeId
from serai.schema.image import Image, ImageKind, ImageSource, ImageState
from serai.schema.resource import Frozen
from serai.schema.volume import VolumeState


class HostParams(Frozen):
    host: HostId


class TakeParams(HostParams):
    uplink: str
    bridge: str
    confirm_within: float
    """Seconds after which the bridge goes again unless it is confirmed."""


class AwayParams(Frozen):
    """`away`: names of hosts that were offline when a deletion was asked for by force, and are left out."""

    away: list[HostName]


class PoolParams(Frozen):
    pool: PoolId


class DeletePoolParams(PoolParams, AwayParams):
    pass


class VolumeParams(Frozen):
    volume: VolumeId


class DeleteVolumeParams(VolumeParams, AwayParams):
    pass


class CreateImageParams(Frozen):
    """`host` none: the one on which VMs have the least memory."""

    image: ImageId
    host: HostName | None = None


class CreateImageState(Frozen):
    host: HostName | None = None
    """Where it is made."""


class DeleteImageParams(AwayParams):
    image: ImageId


ImageContext = JobContext[CreateImageParams, CreateImageState]


async def _open_pool(office: Office, ctx: JobContext[PoolParams, NoState]) -> None:
    pool = await office.shelf.pool(ctx.params.pool)
    body = OpenPool(pool=pool.id, driver=pool.spec.driver, path=pool.spec.path, export=pool.spec.export)
    status = await ctx.send(POOL_OPEN, pool.spec.host, body)
    await office.shelf.set_pool_status(pool.id, status)
    ctx.result = status.model_dump(mode="json")


async def _close_pool(office: Office, ctx: JobContext[PoolParams, NoState]) -> None:
    pool = await office.shelf.pool(ctx.params.pool)
    await ctx.send(POOL_CLOSE, pool.spec.host, ClosePool(pool=pool.id))
    await office.shelf.delete_pool(pool.id)


async def _delete_pool(office: Office, ctx: JobContext[DeletePoolParams, NoState]) -> None:
    if ctx.params.away:
        await office.shelf.delete_pool(ctx.params.pool)
    else:
        await _close_pool(office, ctx)
    _say_what_is_left(ctx)


async def _drop_volume(office: Office, ctx: JobContext[VolumeParams, NoState]) -> None:
    volume = await office.shelf.volume(ctx.params.volume)
    pool = await office.shelf.pool(volume.spec.pool)
    await ctx.send(VOLUME_DELETE, pool.spec.host, DeleteVolume(pool=pool.id, volume=volume.id))
    await office.shelf.delete_volume(volume.id)


async def _delete_volume(office: Office, ctx: JobContext[DeleteVolumeParams, NoState]) -> None:
    if ctx.params.away:
        await office.shelf.delete_volume(ctx.params.volume)
    else:
        await _drop_volume(office, ctx)
    _say_what_is_left(ctx)


def _say_what_is_left(ctx: JobContext[AwayParams, NoState]) -> None:
    if away := ctx.params.away:
        ctx.progress(None, f"forgotten here; {', '.join(away)} removes it when it is back: serai host show")


async def _take(office: Office, ctx: JobContext[TakeParams, NoState]) -> None:
    host = await office.shelf.host_of_id(ctx.params.host)
    asked = ctx.params
    body = TakeUplink(uplink=asked.uplink, bridge=asked.bridge, confirm_within=asked.confirm_within)
    taken = await ctx.send(UPLINK_TAKE, host.name, body)
    # Known at once: its next report may be seconds away, and says so if it is undone.
    await office.shelf.add_bridge(host.id, body.bridge)
    ctx.result = {"bridge": body.bridge, "confirm_before": taken.deadline.isoformat()}


async def _confirm(office: Office, ctx: JobContext[HostParams, NoState]) -> None:
    host = await office.shelf.host_of_id(ctx.params.host)
    await ctx.send(UPLINK_CONFIRM, host.name, ConfirmUplink(token=""))
    ctx.result = {"confirmed": True}


async def _make_volume(office: Office, ctx: JobContext[VolumeParams, NoState]) -> None:
    volume = await office.shelf.volume(ctx.params.volume)
    pool = await office.shelf.pool(volume.spec.pool)
    image = None if volume.spec.image is None else await office.shelf.image(volume.spec.image)
    await make_volume(office, ctx, volume, pool, image)
    await office.shelf.set_volume_status(volume.id, state=VolumeState.READY, size=volume.spec.size, reason="")
    ctx.result = {"size": volume.spec.size}


async def _image_host(office: Office, ctx: ImageContext) -> HostName:
    wanted = ctx.state.host or ctx.params.host
    if wanted is None:
        online = [host for host in await office.shelf.hosts() if host.status.state is HostState.ONLINE]
        if not online:
            raise UnavailableError("no host is online", field="host", remedy="Start a host agent.")
        wanted = min(online, key=lambda host: (host.status.memory_committed, host.name)).name
    facts_of(await office.shelf.host(wanted))
    return wanted


async def _make_image(office: Office, ctx: ImageContext) -> None:
    image = await office.shelf.image(ctx.params.image)
    host = await _image_host(office, ctx)
    await ctx.save(host=host)
    if image.spec.source is ImageSource.UPLOAD:
        manifest = await office.shelf.wait_upload(ctx, image.id, host)
    else:
        manifest = await copies.make(office.shelf, ctx, image, host)
    await office.shelf.set_image_status(image.id, state=ImageState.READY, hosts=[host], manifest=manifest, reason="")
    await office.shelf.forget_image_url(image.id)
    ctx.result = {"host": host, "manifest": manifest.model_dump(mode="json")}


async def _spread_image(office: Office, ctx: ImageContext) -> None:
    """A kernel image is small, and each host that may receive its VMs needs it: it goes there now, not in a move.

    A host that does not answer gets it when it is first needed.
    """
    image = await office.shelf.image(ctx.params.image)
    manifest = image.status.manifest
    if manifest is None or manifest.kind is not ImageKind.KERNEL:
        return
    for host in await office.shelf.hosts():
        if host.status.state is HostState.ONLINE:
            try:
                await copies.bring_image(office.shelf, ctx, image, host.name)
            except UnavailableError as error:
                ctx.progress(None, f"{host.name} gets it later: {error.info.message}")


async def _drop_image(office: Office, ctx: ImageContext) -> None:
    image = await office.shelf.image(ctx.params.image)
    made_on = () if ctx.state.host is None else (ctx.state.host,)
    await _drop_copies(office, ctx, image, {*image.status.hosts, *made_on})


async def _delete_image(office: Office, ctx: JobContext[DeleteImageParams, NoState]) -> None:
    image = await office.shelf.image(ctx.params.image)
    await _drop_copies(office, ctx, image, {*image.status.hosts} - {*ctx.params.away})
    _say_what_is_left(ctx)


async def _drop_copies(office: Office, ctx: AnyContext, image: Image, hosts: set[HostName]) -> None:
    for host in sorted(hosts):
        await ctx.send(IMAGE_DELETE, host, DeleteImage(image=image.id))
    await office.shelf.delete_image(image.id)


TAKE_UPLINK = Workflow("host.take", TakeParams, NoState, (Step("take", _take, repeatable=True),))
CONFIRM_UPLINK = Workflow("host.confirm", HostParams, NoState, (Step("confirm", _confirm, repeatable=True),))
CREATE_POOL = Workflow(
    "pool.create", PoolParams, NoState, (Step("open", _open_pool, undo=_close_pool, repeatable=True),)
)
DELETE_POOL = Workflow("pool.delete", DeletePoolParams, NoState, (Step("close", _delete_pool, repeatable=True),))
CREATE_VOLUME = Workflow(
    "volume.create", VolumeParams, NoState, (Step("make", _make_volume, undo=_drop_volume, repeatable=True),)
)
DELETE_VOLUME = Workflow(
    "volume.delete", DeleteVolumeParams, NoState, (Step("delete", _delete_volume, repeatable=True),)
)
CREATE_IMAGE = Workflow(
    "image.create",
    CreateImageParams,
    CreateImageState,
    (Step("make", _make_image, undo=_drop_image, repeatable=True), Step("spread", _spread_image, repeatable=True)),
)
DELETE_IMAGE = Workflow("image.delete", DeleteImageParams, NoState, (Step("delete", _delete_image, repeatable=True),))
