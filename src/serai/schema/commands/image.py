"""Commands for a host's copy of an image."""

from __future__ import annotations

from types import NoneType

from serai.schema.commands.base import Command
from serai.schema.ids import ImageId, Name
from serai.schema.image import ImageManifest, ImageSpec
from serai.schema.resource import Frozen


class CreateImage(Frozen):
    """Build or download it."""

    image: ImageId
    name: Name
    spec: ImageSpec


class FetchImage(Frozen):
    """Take a copy from another host over the data channel."""

    image: ImageId
    manifest: ImageManifest
    address: str
    port: int
    server: str
    ticket: str


class DeleteImage(Frozen):
    image: ImageId


IMAGE_CREATE = Command("image.create", CreateImage, ImageManifest, lambda body: f"image/{body.image}", patience=3600.0)
IMAGE_FETCH = Command("image.fetch", FetchImage, NoneType, lambda body: f"image/{body.image}", patience=600.0)
IMAGE_DELETE = Command("image.delete", DeleteImage, NoneType, lambda body: f"image/{body.image}")
