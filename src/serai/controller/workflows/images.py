"""`image.create` and `image.delete`."""

from __future__ import annotations

from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow
from serai.controller.services import capacity, images
from serai.controller.services.checks import need_online
from serai.controller.store import View
from serai.controller.workflows import copies
from serai.controller.workflows.common import AwayParams, say_what_is_left
from serai.schema.commands.image import IMAGE_DELETE, DeleteImage
from serai.schema.errors import UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostName, ImageId
from serai.schema.image import Image, ImageKind, ImageManifest, ImageSource
from serai.schema.resource import Frozen


class CreateImageParams(Frozen):
    """`host` none: the one on which VMs have the least memory."""

    image: ImageId
    host: HostName | None = None


class CreateImageState(Frozen):
    host: HostName | None = None
    """Where it is made."""


class DeleteImageParams(AwayParams):
    image: ImageId


Context = JobContext[CreateImageParams, CreateImageState]


async def _host_for(view: View, wanted: HostName | None) -> HostName:
    if wanted is None:
        online = [host for host in await capacity.all_hosts(view) if host.status.state is HostState.ONLINE]
        if not online:
            raise UnavailableError("no host is online", field="host", remedy="Start a host agent.")
        wanted = min(online, key=lambda host: (host.status.memory_committed, host.name)).name
    need_online(await view.hosts.need(wanted))
    return wanted


async def _make(ctx: Context) -> None:
    async with ctx.store.read() as view:
        image = await view.images.get(ctx.params.image)
        host = await _host_for(view, ctx.state.host or ctx.params.host)
    await ctx.save(host=host)
    upload = image.spec.source is ImageSource.UPLOAD
    manifest = await (_receive(ctx, image, host) if upload else copies.make(ctx, image, host))
    async with ctx.store.transaction() as tx:
        await images.made(tx, image.id, host, manifest)
    ctx.result = {"host": host, "manifest": manifest.model_dump(mode="json")}


async def _receive(ctx: Context, image: Image, host: HostName) -> ImageManifest:
    async with ctx.uploads.expected(image.id, host) as done:
        ctx.waits_for("the image's content, which the client sends")
        await ctx.until(done)
        ctx.check_cancel()
        ctx.waits_for("")
        return await done


async def _spread(ctx: Context) -> None:
    """A kernel image is small, and each host that may receive its VMs needs it: it goes there now, not in a move.

    A host that does not answer gets it when it is first needed.
    """
    async with ctx.store.read() as view:
        image = await view.images.get(ctx.params.image)
        hosts = await view.hosts.all()
    manifest = image.status.manifest
    if manifest is None or manifest.kind is not ImageKind.KERNEL:
        return
    for host in hosts:
        if host.status.state is HostState.ONLINE:
            try:
                await copies.bring_image(ctx, image, host.name)
            except UnavailableError as error:
                ctx.progress(None, f"{host.name} gets it later: {error.info.message}")


async def _unmake(ctx: Context) -> None:
    made_on = () if ctx.state.host is None else (ctx.state.host,)
    async with ctx.store.read() as view:
        image = await view.images.get(ctx.params.image)
    await _drop(ctx, image, {*image.status.hosts, *made_on})


async def _delete(ctx: JobContext[DeleteImageParams, NoState]) -> None:
    async with ctx.store.read() as view:
        image = await view.images.get(ctx.params.image)
    await _drop(ctx, image, {*image.status.hosts} - {*ctx.params.away})
    say_what_is_left(ctx)


async def _drop(ctx: AnyContext, image: Image, hosts: set[HostName]) -> None:
    for host in sorted(hosts):
        await ctx.send(IMAGE_DELETE, host, DeleteImage(image=image.id))
    async with ctx.store.transaction() as tx:
        await images.forget(tx, image.id)


CREATE_IMAGE = Workflow(
    "image.create",
    CreateImageParams,
    CreateImageState,
    (Step("make", _make, undo=_unmake, repeatable=True), Step("spread", _spread, repeatable=True)),
)
DELETE_IMAGE = Workflow("image.delete", DeleteImageParams, NoState, (Step("delete", _delete, repeatable=True),))
