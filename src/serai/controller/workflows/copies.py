"""Copies of images: on which hosts they are, how one gets to a host, and what follows when one is found damaged.

A host answers a command with NotFoundError, field `image` and the image's id, when it has no sound copy (it drops a
damaged one itself). The record of that copy then goes, another is brought, and the command is sent once more. A copy
comes from any host that has a sound one. If none has, what was built is built again and what has a plain URL is
downloaded again; an upload, or a URL whose credentials were forgotten after the import, can only be imported anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from serai.controller.jobs.workflow import AnyContext
from serai.lib.redact import MASK
from serai.schema.commands.envelope import CommandProgress
from serai.schema.commands.image import IMAGE_CREATE, IMAGE_FETCH, CreateImage, FetchImage
from serai.schema.errors import ConflictError, HostError, InvalidError, NotFoundError, SeraiError, UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.image import Image, ImageManifest, ImageSource, ImageState
from serai.schema.ticket import Purpose

if TYPE_CHECKING:
    from serai.controller.workflows.shelf import Shelf
    from serai.schema.host import HostFacts

STREAM_PORT = 7443

T = TypeVar("T")


def lacks(error: SeraiError, image: Image) -> bool:
    """Whether the error says that a host has no sound copy of the image."""
    return isinstance(error, NotFoundError) and (error.info.field, error.info.value) == ("image", image.id)


async def with_copy(
    shelf: Shelf, ctx: AnyContext, image: Image, host: HostName, send: Callable[[], Awaitable[T]], *, had: bool = False
) -> T:
    """What `send` answers: a command to `host` that uses its copy; brought before, and once again if it is damaged.

    `had`: the copy was brought already.
    """
    if not had:
        await bring_image(shelf, ctx, image, host)
    try:
        return await send()
    except NotFoundError as error:
        if not lacks(error, image):
            raise
        await _lost(shelf, image, host, error)
        await bring_image(shelf, ctx, await shelf.image(image.id), host)
        return await send()


async def bring_image(shelf: Shelf, ctx: AnyContext, image: Image, host: HostName) -> None:
    """A copy of the image is on `host`: taken over the data channel from a host that has a sound one, or made anew.

    Raises UnavailableError if the hosts that may have one do not answer, HostError if nobody has one.
    """
    if host in image.status.hosts:
        return
    current = await shelf.image(image.id)
    if host in current.status.hosts:
        return
    manifest = current.status.manifest
    if manifest is None:
        raise ConflictError(f"image {image.name} is not ready", field="spec.image", value=image.name)
    offline = []
    for source in current.status.hosts:
        found = await shelf.host(source)
        if found.status.state is not HostState.ONLINE or found.status.facts is None:
            offline.append(source)
            continue
        try:
            await _fetch(shelf, ctx, current, manifest, (source, found.status.facts), host)
        except (NotFoundError, InvalidError) as error:
            if not lacks(error, current) and error.info.field != "sha256":
                raise
            await _lost(shelf, current, source, error)
        else:
            await shelf.add_image_host(image.id, host)
            return
    if offline:
        raise UnavailableError(
            f"no host that has image {image.name} is online",
            field="spec.image",
            value=image.name,
            remedy=f"Start one of {', '.join(offline)}.",
        )
    await _make_anew(shelf, ctx, current, manifest, host)


async def _fetch(
    shelf: Shelf,
    ctx: AnyContext,
    image: Image,
    manifest: ImageManifest,
    source: tuple[HostName, HostFacts],
    host: HostName,
) -> None:
    name, facts = source
    ticket = await shelf.issue_ticket(
        Purpose.IMAGE_READ, resource=image.id, holder=f"host.{host}", server=f"host.{name}"
    )

    def progress(step: CommandProgress) -> None:
        ctx.progress(step.fraction, f"image {image.name} to {host}")

    body = FetchImage(
        image=image.id,
        manifest=manifest,
        address=facts.addresses["management"],
        port=STREAM_PORT,
        server=f"host.{name}",
        ticket=ticket.id,
    )
    await ctx.send(IMAGE_FETCH, host, body, on_progress=progress)


async def make(shelf: Shelf, ctx: AnyContext, image: Image, host: HostName) -> ImageManifest:
    """Have a host build or download the image. The URL that the host gets holds what the record does not show."""

    def progress(step: CommandProgress) -> None:
        ctx.progress(step.fraction, step.phase)

    spec = image.spec
    if spec.url is not None:
        spec = spec.model_copy(update={"url": await shelf.image_url(image.id) or spec.url})
    body = CreateImage(image=image.id, name=image.name, spec=spec)
    return await ctx.send(IMAGE_CREATE, host, body, on_progress=progress)


async def _make_anew(shelf: Shelf, ctx: AnyContext, image: Image, old: ImageManifest, host: HostName) -> None:
    url = image.spec.url
    if image.spec.source is ImageSource.UPLOAD or (url is not None and MASK in url):
        reason = "no host has a sound copy of it any more"
        await shelf.set_image_status(image.id, state=ImageState.FAILED, hosts=[], reason=reason)
        sums = ", ".join(f"{row.name} (sha256 {row.sha256})" for row in old.files)
        raise HostError(
            f"no host has a sound copy of image {image.name}: {sums}",
            field="spec.image",
            value=image.name,
            remedy="Import it again under another name (serai image import), and use that.",
        )
    ctx.progress(None, f"image {image.name} is made anew on {host}: no host has a sound copy")
    manifest = await make(shelf, ctx, image, host)
    await shelf.set_image_status(image.id, state=ImageState.READY, hosts=[host], manifest=manifest, reason="")


async def _lost(shelf: Shelf, image: Image, host: HostName, error: SeraiError) -> None:
    await shelf.drop_image_host(image.id, host, error.info.message)
