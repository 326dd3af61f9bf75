"""Images that VMs start from."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from serai.schema.ids import HostName, HostRef, ImageId
from serai.schema.resource import Create, Frozen, Resource


class ImageKind(StrEnum):
    KERNEL = "kernel"
    """Booted directly from kernel and initrd; disks, if any, are blank."""
    DISK = "disk"
    """A disk image that the first disk is cloned from."""


class ImageFile(Frozen):
    """A file of an image. `name` is one in the image's own folder: manifests travel, and must not lead elsewhere."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    size: int
    sha256: str


class ImageManifest(Frozen):
    """What an image folder holds. `recipe` is a hash of all that went into a built image; empty for imported ones."""

    name: str
    kind: ImageKind
    files: list[ImageFile]
    format: str = ""
    """`raw` or `qcow2`, of the file `disk.<format>`, for kind `disk`."""
    virtual_size: int = 0
    cmdline: str = ""
    recipe: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    cloud_init: bool = False


class ImageSource(StrEnum):
    BUILD = "build"
    URL = "url"
    UPLOAD = "upload"


class ImageSpec(Frozen):
    """`recipe` (tiny or debian) with source `build`; `url` and `sha256` with source `url`; `sha256` with `upload`."""

    source: ImageSource
    recipe: str | None = None
    url: str | None = None
    sha256: str | None = None
    format: str | None = None


class ImageState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    FAILED = "failed"


class ImageStatus(Frozen):
    """`hosts` are those that hold a copy; others fetch it over the data channel when they first need it."""

    state: ImageState = ImageState.CREATING
    hosts: list[HostName] = Field(default_factory=list)
    manifest: ImageManifest | None = None
    reason: str = ""


class Image(Resource[ImageSpec, ImageStatus]):
    kind: str = "image"
    id: ImageId

    @property
    def disk_size(self) -> int | None:
        """Bytes of the disk that a VM gets a copy of; none for a kernel, and before there is any content."""
        manifest = self.status.manifest
        return manifest.virtual_size if manifest is not None and manifest.kind is ImageKind.DISK else None


class ImageCreate(Create[ImageSpec]):
    host: HostRef | None = None
    """Where it is built or received; none: any online host."""
