"""Copies of images: on which hosts they are, how one gets to a host, and what follows when one is found damaged.

A host answers a command with NotFoundError, field `image` and the image's id, when it has no sound copy (it drops a
damaged one itself). The record of that copy then goes, another is brought, and the command is sent once more. A copy
comes from any host that has a sound one. If none has, what was built is built again and what has a plain URL is
downloaded again; an upload, or a URL whose credentials were forgotten after the import, can only be imported anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from serai.controller.hosts import tickets
from serai.controller.jobs.workflow import AnyContext
from serai.controller.services import images, resources
from serai.controller.services.checks import need_online
from serai.controller.store.secrets import IMAGE_URL
from serai.lib.redact import MASK
from serai.schema.commands.envelope import CommandProgress
from serai.schema.commands.image import IMAGE_CREATE, IMAGE_FETCH, CreateImage, FetchImage
from serai.schema.errors import ConflictError, HostError, InvalidError, NotFoundError, SeraiError, UnavailableError
from serai.schema.host import Host, HostState
from serai.schema.ids import HostName
from serai.schema.image import Image, ImageManifest, ImageSource, ImageState
from serai.schema.ticket import STREAM_PORT, Purpose

T = TypeVar("T")


def lacks(error: SeraiError, image: Image) -> bool:
    """Whether the error says that a host has no sound copy of the image."""
    return isinstance(error, NotFoundError) and (error.info.field, error.info.value) == ("image", image.id)


async def with_copy(
    ctx: AnyContext, image: Image, host: HostName, send: Callable[[], Awaitable[T]], *, had: bool = False
) -> T:
    """What `send` answers: a command to `host` that uses its copy; brought before, and once again if it is damaged.

    `had`: the copy was brought already.
    """
    if not had:
        await bring_image(ctx, image, host)
    try:
        return await send()
    except NotFoundError as error:
        if not lacks(error, image):
            raise
        await _lost(ctx, image, host, error)
        await bring_image(ctx, image, host)
        return await send()


async def bring_image(ctx: AnyContext, image: Image, host: HostName) -> None:
    """A copy of the image is on `host`: taken over the data channel from a host that has a sound one, or made anew.

    Raises UnavailableError if the hosts that may have one do not answer, HostError if nobody has one.
    """
    async with ctx.store.read() as view:
        current = await view.images.get(image.id)
        hosts = {host.name: host for host in await view.hosts.all()}
    if host in current.status.hosts:
        return
    manifest = current.status.manifest
    if manifest is None:
        raise ConflictError(f"image {image.name} is not ready", field="spec.image", value=image.name)
    offline = []
    for source in current.status.hosts:
        found = hosts.get(source)
        if found is None or found.status.state is not HostState.ONLINE:
            offline.append(source)
            continue
        try:
            await _fetch(ctx, current, manifest, found, host)
        except (NotFoundError, InvalidError) as error:
            if not lacks(error, current) and error.info.field != "sha256":
                raise
            await _lost(ctx, current, source, error)
        else:
            async with ctx.store.transaction() as tx:
                await images.add_host(tx, image.id, host)
            return
    if offline:
        raise UnavailableError(
            f"no host that has image {image.name} is online",
            field="spec.image",
            value=image.name,
            remedy=f"Start one of {', '.join(offline)}.",
        )
    await _make_anew(ctx, current, manifest, host)


async def _fetch(ctx: AnyContext, image: Image, manifest: ImageManifest, source: Host, host: HostName) -> None:
    server = f"host.{source.name}"
    async with ctx.store.transaction() as tx:
        ticket = await tickets.issue(tx, Purpose.IMAGE_READ, resource=image.id, holder=f"host.{host}", server=server)

    def progress(step: CommandProgress) -> None:
        ctx.progress(step.fraction, f"image {image.name} to {host}")

    body = FetchImage(
        image=image.id,
        manifest=manifest,
        address=need_online(source).addresses["management"],
        port=STREAM_PORT,
        server=server,
        ticket=ticket,
    )
    await ctx.send(IMAGE_FETCH, host, body, on_progress=progress)


async def make(ctx: AnyContext, image: Image, host: HostName) -> ImageManifest:
    """Have a host build or download the image. The URL that the host gets holds what the record does not show."""

    def progress(step: CommandProgress) -> None:
        ctx.progress(step.fraction, step.phase)

    spec = image.spec
    if spec.url is not None:
        async with ctx.store.read() as view:
            url = await view.secrets.get(f"image/{image.id}", IMAGE_URL)
        spec = spec.model_copy(update={"url": url or spec.url})
    body = CreateImage(image=image.id, name=image.name, spec=spec)
    return await ctx.send(IMAGE_CREATE, host, body, on_progress=progress)


async def _make_anew(ctx: AnyContext, image: Image, old: ImageManifest, host: HostName) -> None:
    url = image.spec.url
    if image.spec.source is ImageSource.UPLOAD or (url is not None and MASK in url):
        reason = "no host has a sound copy of it any more"
        async with ctx.store.transaction() as tx:
            await resources.set_status(tx, tx.images, image.id, state=ImageState.FAILED, hosts=[], reason=reason)
        sums = ", ".join(f"{row.name} (sha256 {row.sha256})" for row in old.files)
        raise HostError(
            f"no host has a sound copy of image {image.name}: {sums}",
            field="spec.image",
            value=image.name,
            remedy="Import it again under another name (serai image import), and use that.",
        )
    ctx.progress(None, f"image {image.name} is made anew on {host}: no host has a sound copy")
    manifest = await make(ctx, image, host)
    async with ctx.store.transaction() as tx:
        await images.made(tx, image.id, host, manifest)


async def _lost(ctx: AnyContext, image: Image, host: HostName, error: SeraiError) -> None:
    async with ctx.store.transaction() as tx:
        await images.drop_host(tx, image.id, host, error.info.message)
