"""Pools, volumes, images, networks: their long actions."""

from __future__ import annotations

from serai.controller.jobs import JobContext, Workflow
from serai.controller.workflows import copies
from serai.controller.workflows.common import Action, Office, bound, facts_of, make_volume
from serai.schema.commands.image import IMAGE_DELETE, DeleteImage
from serai.schema.commands.pool import POOL_CLOSE, POOL_OPEN, ClosePool, OpenPool
from serai.schema.commands.uplink import UPLINK_CONFIRM, UPLINK_TAKE, ConfirmUplink, TakeUplink
from serai.schema.commands.volume import VOLUME_DELETE, DeleteVolume
from serai.schema.errors import UnavailableError
from serai.schema.host import HostState
from serai.schema.image import ImageKind, ImageSource, ImageState
from serai.schema.volume import VolumeState

AWAY = "away"
"""Key in a job's params: hosts that were offline when a deletion was asked for by force, and are left out."""


def workflows(office: Office) -> list[Workflow]:
    """All kinds of this file."""

    def one(kind: str, name: str, run: Action, undo: Action | None = None) -> Workflow:
        return Workflow(kind, (bound(office, name, run, undo),))

    return [
        one("host.take", "take", _take),
        one("host.confirm", "confirm", _confirm),
        one("pool.create", "open", _pool_create, _pool_close),
        one("pool.delete", "close", _pool_delete),
        one("volume.create", "make", _make_volume, _volume_unmake),
        one("volume.delete", "delete", _volume_delete),
        Workflow(
            "image.create",
            (bound(office, "make", _make_image, _image_unmake), bound(office, "spread", _spread_image)),
        ),
        one("image.delete", "delete", _image_delete),
    ]


async def _pool_create(office: Office, ctx: JobContext) -> None:
    pool = await office.shelf.pool(ctx.params["id"])
    body = OpenPool(pool=pool.id, driver=pool.spec.driver, path=pool.spec.path, export=pool.spec.export)
    status = await ctx.send(POOL_OPEN, pool.spec.host, body)
    await office.shelf.set_pool_status(pool.id, status)
    ctx.result = status.model_dump(mode="json")


async def _pool_close(office: Office, ctx: JobContext) -> None:
    pool = await office.shelf.pool(ctx.params["id"])
    await ctx.send(POOL_CLOSE, pool.spec.host, ClosePool(pool=pool.id))
    await office.shelf.delete_pool(pool.id)


async def _pool_delete(office: Office, ctx: JobContext) -> None:
    if ctx.params.get(AWAY):
        await office.shelf.delete_pool(ctx.params["id"])
    else:
        await _pool_close(office, ctx)
    _say_what_is_left(ctx)


async def _volume_unmake(office: Office, ctx: JobContext) -> None:
    volume = await office.shelf.volume(ctx.params["id"])
    pool = await office.shelf.pool(volume.spec.pool)
    if not ctx.params.get(AWAY):
        body = DeleteVolume(pool=pool.id, volume=volume.id)
        await ctx.send(VOLUME_DELETE, pool.spec.host, body)
    await office.shelf.delete_volume(volume.id)


async def _volume_delete(office: Office, ctx: JobContext) -> None:
    await _volume_unmake(office, ctx)
    _say_what_is_left(ctx)


def _say_what_is_left(ctx: JobContext) -> None:
    if away := ctx.params.get(AWAY):
        ctx.progress(None, f"forgotten here; {', '.join(away)} removes it when it is back: serai job list")


async def _image_unmake(office: Office, ctx: JobContext) -> None:
    await _drop_copies(office, ctx)
    await office.shelf.delete_image(ctx.params["id"])


async def _image_delete(office: Office, ctx: JobContext) -> None:
    await _image_unmake(office, ctx)
    _say_what_is_left(ctx)


async def _take(office: Office, ctx: JobContext) -> None:
    host = await office.shelf.host(ctx.params["id"])
    body = TakeUplink(
        uplink=ctx.params["uplink"],
        bridge=ctx.params.get("bridge", "br-lan"),
        confirm_within=float(ctx.params.get("confirm_within", 60.0)),
    )
    taken = await ctx.send(UPLINK_TAKE, host.name, body)
    # Known at once: its next report may be seconds away, and says so if it is undone.
    await office.shelf.add_bridge(host.id, body.bridge)
    ctx.result = {"bridge": body.bridge, "confirm_before": taken.deadline.isoformat()}


async def _confirm(office: Office, ctx: JobContext) -> None:
    host = await office.shelf.host(ctx.params["id"])
    await ctx.send(UPLINK_CONFIRM, host.name, ConfirmUplink(token=""))
    ctx.result = {"confirmed": True}


async def _make_volume(office: Office, ctx: JobContext) -> None:
    volume = await office.shelf.volume(ctx.params["id"])
    pool = await office.shelf.pool(volume.spec.pool)
    image = None if volume.spec.image is None else await office.shelf.image(volume.spec.image)
    await make_volume(office, ctx, volume, pool, image)
    await office.shelf.set_volume_status(volume.id, state=VolumeState.READY, size=volume.spec.size, reason="")
    ctx.result = {"size": volume.spec.size}


async def _image_host(office: Office, ctx: JobContext) -> str:
    wanted = ctx.data.get("host") or ctx.params.get("host")
    if wanted is None:
        online = [host for host in await office.shelf.hosts() if host.status.state is HostState.ONLINE]
        if not online:
            raise UnavailableError("no host is online", field="host", remedy="Start a host agent.")
        wanted = min(online, key=lambda host: (host.status.memory_committed, host.name)).name
    facts_of(await office.shelf.host(wanted))
    return str(wanted)


async def _make_image(office: Office, ctx: JobContext) -> None:
    image = await office.shelf.image(ctx.params["id"])
    host = await _image_host(office, ctx)
    ctx.data["host"] = host
    await ctx.save()

    if image.spec.source is ImageSource.UPLOAD:
        manifest = await office.shelf.wait_upload(ctx, image.id, host)
    else:
        manifest = await copies.make(office.shelf, ctx, image, host)
    await office.shelf.set_image_status(image.id, state=ImageState.READY, hosts=[host], manifest=manifest, reason="")
    await office.shelf.forget_image_url(image.id)
    ctx.result = {"host": host, "manifest": manifest.model_dump(mode="json")}


async def _spread_image(office: Office, ctx: JobContext) -> None:
    """A kernel image is small, and each host that may receive its VMs needs it: it goes there now, not in a move.

    A host that does not answer gets it when it is first needed.
    """
    image = await office.shelf.image(ctx.params["id"])
    manifest = image.status.manifest
    if manifest is None or manifest.kind is not ImageKind.KERNEL:
        return
    for host in await office.shelf.hosts():
        if host.status.state is HostState.ONLINE:
            try:
                await copies.bring_image(office.shelf, ctx, image, host.name)
            except UnavailableError as error:
                ctx.progress(None, f"{host.name} gets it later: {error.info.message}")


async def _drop_copies(office: Office, ctx: JobContext) -> None:
    image = await office.shelf.image(ctx.params["id"])
    hosts = set(image.status.hosts) | ({ctx.data["host"]} if "host" in ctx.data else set())
    for host in sorted(hosts - set(ctx.params.get(AWAY, ()))):
        await ctx.send(IMAGE_DELETE, host, DeleteImage(image=image.id))
