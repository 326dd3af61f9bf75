"""Images: made and deleted, and on which hosts their copies are."""

from __future__ import annotations

from serai.controller.services import resources
from serai.controller.store import Transaction
from serai.schema.ids import HostName, ImageId
from serai.schema.image import ImageManifest, ImageState


async def made(tx: Transaction, image_id: ImageId, host: HostName, manifest: ImageManifest) -> None:
    """A host has built or received it; nobody needs the credentials of its URL any more."""
    fields = {"state": ImageState.READY, "hosts": [host], "manifest": manifest, "reason": ""}
    await resources.set_status(tx, tx.images, image_id, **fields)
    await tx.secrets.drop(f"image/{image_id}")


async def forget(tx: Transaction, image_id: ImageId) -> None:
    """It is deleted, with the credentials of its URL. Raises NotFoundError."""
    await resources.forget(tx, tx.images, image_id)
    await tx.secrets.drop(f"image/{image_id}")


async def add_host(tx: Transaction, image_id: ImageId, host: HostName) -> None:
    """One more host has a copy."""
    hosts = (await tx.images.get(image_id)).status.hosts
    if host not in hosts:
        await tx.images.update_status(image_id, hosts=[*hosts, host])


async def drop_host(tx: Transaction, image_id: ImageId, host: HostName, reason: str) -> None:
    """One host has no copy any more, for that reason."""
    image = await tx.images.get(image_id)
    await tx.images.update_status(image_id, hosts=[name for name in image.status.hosts if name != host])
    await tx.emit("image.damaged", f"image/{image.name}", image_id, f"{host}: {reason}")
