"""Images: made and deleted. The content of one with source `upload` comes later: `PUT …/content`, see api/streams.py.

A URL may hold credentials. The image's spec, which everyone who may list images sees, gets the URL without them
(`lib/imageurl.masked_url`). The whole URL is kept among the store's secrets (owner `image/<id>`, the database file is
mode 0600), so that the job finds it again after a restart of the controller; job params hold no part of a spec. It goes
to the host in the command, over mutual TLS, and a host journals answers, not commands. Once the content is on a host,
or the image is given up, the secret is deleted.
"""

from __future__ import annotations

from serai.controller.services.absent import leave_out
from serai.controller.services.checks import WAIT_OR_CANCEL, need_online, refuse_while
from serai.controller.services.create import add
from serai.controller.services.requester import Action, Requester
from serai.controller.store import Transaction
from serai.controller.store.secrets import IMAGE_URL
from serai.controller.workflows.images import CREATE_IMAGE, DELETE_IMAGE, CreateImageParams, DeleteImageParams
from serai.lib.ids import new_id
from serai.lib.imageurl import check_sha256, check_url, hide_url, masked_url
from serai.schema.commands.image import IMAGE_DELETE, DeleteImage
from serai.schema.errors import ConflictError, InvalidError, UnavailableError
from serai.schema.ids import ImageId
from serai.schema.image import Image, ImageCreate, ImageSource, ImageSpec, ImageState, ImageStatus
from serai.schema.job import Job
from serai.schema.volume import VolumeState

KNOWN = {"recipe": ("tiny", "debian"), "format": ("qcow2", "raw")}
"""What these fields may say."""
WANTED: dict[ImageSource, tuple[str, ...]] = {
    ImageSource.BUILD: ("recipe",),
    ImageSource.URL: ("url", "sha256"),
    ImageSource.UPLOAD: ("sha256",),
}
"""Source to the fields that it needs; others of these are refused."""


async def create(tx: Transaction, requester: Requester, body: ImageCreate) -> Job:
    """Write it down and let a host build, fetch or receive it."""
    spec = _checked(body.spec)
    url = spec.url
    if url is not None:
        hide_url(url)
        spec = spec.model_copy(update={"url": masked_url(url)})
    if body.host is not None:
        need_online(await tx.hosts.need(body.host, "host"), "host")
    elif not await tx.hosts.online():
        raise UnavailableError("no host is online to make the image", field="host", remedy="Start a host's agent.")
    image = await add(tx, tx.images, new_id(ImageId), body, spec, ImageStatus(), spec.source.value)
    if url is not None and url != spec.url:
        await tx.secrets.put(f"image/{image.id}", IMAGE_URL, url)
    return await requester.submit(tx, CREATE_IMAGE, image, CreateImageParams(image=image.id, host=body.host))


async def delete(tx: Transaction, requester: Requester, image: Image, *, force: bool = False) -> Job:
    """Delete one that no VM was made from; by force also where a host that has a copy is offline."""
    await refuse_while(tx, image.id, "the image is at work", "image.delete", "image.create", remedy=WAIT_OR_CANCEL)
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
    hosts = [await tx.hosts.need(name) for name in image.status.hosts]
    away = await leave_out(tx, requester, image, hosts, IMAGE_DELETE, DeleteImage(image=image.id), force=force)
    return await requester.submit(tx, DELETE_IMAGE, image, DeleteImageParams(image=image.id, away=away))


def check_upload(image: Image) -> None:
    """Raises ConflictError unless the image waits for its content."""
    if image.spec.source is not ImageSource.UPLOAD:
        raise ConflictError(
            f"image {image.name} is not one that is uploaded",
            field="source",
            value=image.spec.source,
            remedy="Create an image with source upload.",
        )
    if image.status.state is not ImageState.CREATING:
        raise ConflictError(
            f"image {image.name} has its content already",
            field="state",
            value=image.status.state,
            remedy="Create another image.",
        )


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


def _checked(spec: ImageSpec) -> ImageSpec:
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
    for field, known in KNOWN.items():
        value = getattr(spec, field)
        if value is not None and value not in known:
            remedy = f"Use {' or '.join(known)}."
            raise InvalidError(f"there is no such {field}", field=f"spec.{field}", value=value, remedy=remedy)
    if spec.url is not None:
        check_url(spec.url)
    sha256 = None if spec.sha256 is None else check_sha256(spec.sha256)
    return spec.model_copy(update={"sha256": sha256})


ACTIONS: dict[str, Action] = {"image.create": create, "image.delete": delete}
