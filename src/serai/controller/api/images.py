"""Images. The content of one with source `upload` follows its creation: `PUT …/content`, see streams.py.

A URL may hold credentials. The image's spec, which everyone who may list images sees, gets the URL without them
(`lib/imageurl.masked_url`). The whole URL is kept among the store's secrets (owner `image/<id>`, the database file is
mode 0600), so that the job finds it again after a restart of the controller; job params hold no part of a spec. It goes
to the host in the command, over mutual TLS, and a host journals answers, not commands. Once the content is on a host,
or the image is given up, the secret is deleted.
"""

from __future__ import annotations

from fastapi import Response

from serai.controller.api.absent import away, clean_later
from serai.controller.api.call import Api, Call, Handler, accepted
from serai.controller.api.checks import need_online, refuse_while
from serai.controller.api.references import respond, respond_page
from serai.controller.store import Transaction
from serai.controller.store.secrets import IMAGE_URL
from serai.controller.workflows.resources import CREATE_IMAGE, DELETE_IMAGE, CreateImageParams, DeleteImageParams
from serai.lib.ids import new_id
from serai.lib.imageurl import check_sha256, check_url, hide_url, masked_url
from serai.schema.commands.image import IMAGE_DELETE, DeleteImage
from serai.schema.errors import ConflictError, InvalidError, UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import ImageId
from serai.schema.image import Image, ImageCreate, ImageSource, ImageSpec, ImageStatus
from serai.schema.volume import VolumeState

RECIPES = ("tiny", "debian")
FORMATS = ("qcow2", "raw")
WANTED: dict[ImageSource, tuple[str, ...]] = {
    ImageSource.BUILD: ("recipe",),
    ImageSource.URL: ("url", "sha256"),
    ImageSource.UPLOAD: ("sha256",),
}
"""Source to the fields that it needs; others of these are refused."""


async def list_(api: Api, call: Call) -> Response:
    """By name."""
    async with api.store.read() as view:
        return await respond_page(view, await view.images.page(call.limit, call.cursor), Image)


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return await respond(view, await view.images.find(call.name))


async def create(api: Api, call: Call) -> Response:
    """Write it down and let a host build, fetch or receive it."""
    body = call.need(ImageCreate)
    spec = check_spec(body.spec)
    url = spec.url
    if url is not None:
        hide_url(url)
        spec = spec.model_copy(update={"url": masked_url(url)})
    async with api.store.transaction() as tx:
        if body.host is not None:
            need_online(await tx.hosts.need(body.host, "host"), "host")
        elif not await tx.hosts.count(tx.hosts.table.c.state == HostState.ONLINE.value):
            raise UnavailableError("no host is online to make the image", field="host", remedy="Start a host's agent.")
        image = Image(
            name=body.name,
            id=new_id(ImageId),
            generation=1,
            labels=body.labels,
            description=body.description,
            created=tx.now,
            spec=spec,
            status=ImageStatus(),
        )
        await tx.images.insert(image)
        if url is not None and url != spec.url:
            await tx.secrets.put(f"image/{image.id}", IMAGE_URL, url)
        await tx.emit("image.created", f"image/{image.name}", image.id, spec.source.value)
        params = CreateImageParams(image=image.id, host=body.host)
        return accepted(await call.submit(api, tx, CREATE_IMAGE, image, params))


async def delete(api: Api, call: Call) -> Response:
    """Delete one that no VM was made from; by force also where a host that has a copy is offline."""
    async with api.store.transaction() as tx:
        image = await tx.images.find(call.name)
        await refuse_while(
            tx,
            image.id,
            "the image is at work",
            "image.delete",
            "image.create",
            remedy="Wait for that job's end, or stop it: serai job cancel {job}.",
        )
        await _refuse_while_copied(tx, image)
        users = await tx.vms.users_of_image(image.id)
        if users:
            raise ConflictError(
                f"VM {users[0]} was made from image {image.name}"
                + (f", and {len(users) - 1} more" if len(users) > 1 else ""),
                field="image",
                value=image.name,
                remedy="Delete these VMs first.",
            )
        absent = away(call, [await tx.hosts.need(name) for name in image.status.hosts])
        for host in absent:
            await clean_later(call, tx, host, IMAGE_DELETE, DeleteImage(image=image.id))
        params = DeleteImageParams(image=image.id, away=[host.name for host in absent])
        return accepted(await call.submit(api, tx, DELETE_IMAGE, image, params))


async def _refuse_while_copied(tx: Transaction, image: Image) -> None:
    """Raises ConflictError while a volume is being made from the image: by its own job, or by a VM's."""
    for volume in await tx.volumes.made_from(image.id):
        if volume.status.state is VolumeState.CREATING:
            raise ConflictError(
                f"volume {volume.name} is being made from image {image.name}",
                field="image",
                value=image.name,
                remedy="Wait until it is ready: serai volume list.",
            )


def check_spec(spec: ImageSpec) -> ImageSpec:
    """The spec, if source and fields go together. Raises InvalidError."""
    wanted = WANTED[spec.source]
    for field in ("recipe", "url", "sha256"):
        value = getattr(spec, field)
        if field in wanted and not value:
            raise InvalidError(
                f"source {spec.source} needs {field}", field=f"spec.{field}", remedy=f"Add spec.{field}."
            )
        if field not in wanted and value:
            raise InvalidError(
                f"source {spec.source} has no {field}",
                field=f"spec.{field}",
                value=masked_url(value) if field == "url" else value,
                remedy="Leave it out.",
            )
    if spec.recipe is not None and spec.recipe not in RECIPES:
        known = " or ".join(RECIPES)
        raise InvalidError("there is no such recipe", field="spec.recipe", value=spec.recipe, remedy=f"Use {known}.")
    if spec.url is not None:
        check_url(spec.url)
    sha256 = None if spec.sha256 is None else check_sha256(spec.sha256)
    if spec.format is not None and spec.format not in FORMATS:
        known = " or ".join(FORMATS)
        raise InvalidError("there is no such format", field="spec.format", value=spec.format, remedy=f"Use {known}.")
    return spec.model_copy(update={"sha256": sha256})


HANDLERS: dict[str, Handler] = {
    "image.list": list_,
    "image.show": show,
    "image.create": create,
    "image.delete": delete,
}
