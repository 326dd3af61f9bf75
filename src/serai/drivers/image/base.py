"""The contract of image builders, and what all of them share: folders that appear whole or not at all.

An image is a folder with `manifest.json` and the files that it lists. Builders write into a folder that is then renamed
into place, so that a crash leaves only a `.part-` folder, which the store sweeps.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from serai.lib.streamfile import sha256_file
from serai.schema.errors import NotFoundError
from serai.schema.image import ImageFile, ImageKind, ImageManifest

Progress = Callable[[str, float | None], None]
"""Phase in words, and a fraction from 0 to 1 where one is known."""

MANIFEST = "manifest.json"


class ImageBuilder(Protocol):
    """Builds one kind of image from packages. `recipe` changes whenever the result would."""

    @property
    def name(self) -> str: ...

    async def recipe(self) -> str:
        """A hash of all that goes in: our own files, options and the packages' versions."""

    async def build(self, folder: Path, progress: Progress) -> ImageManifest:
        """Write the image's files and its manifest into an empty folder. Raises HostError, CapacityError."""


Build = Callable[[Progress], Awaitable[Path]]
"""Builds an image of one recipe, unless it was built before; the folder with its manifest and files, to copy from."""


class ImageImporter(Protocol):
    """Makes images of disk images that somebody has. `wanted` is the format that was told, if any.

    Both raise InvalidError (checksum, format), UnavailableError, CapacityError, and write into an empty folder.
    """

    async def from_url(
        self, url: str, sha256: str | None, name: str, folder: Path, progress: Progress, wanted: str | None = None
    ) -> ImageManifest: ...

    async def from_stream(
        self,
        source: AsyncIterator[bytes],
        total: int,
        sha256: str | None,
        name: str,
        folder: Path,
        progress: Progress,
        wanted: str | None = None,
    ) -> ImageManifest: ...


class ImageRepository(Protocol):
    """A host's copies of images, by id. What is used is checked first; a damaged copy is dropped."""

    def manifest(self, image: str) -> ImageManifest:
        """Raises NotFoundError."""

    async def check(self, image: str) -> ImageManifest:
        """The manifest of a sound copy. Raises NotFoundError: there is none, or none any more."""

    def file(self, image: str, name: str) -> Path:
        """One of the image's files. Raises NotFoundError, InvalidError for a name that the manifest does not have."""

    def distrust(self, image: str, wrong: str) -> None:
        """Drop a copy whose content, as somebody read it, is not what its manifest says."""

    def adding(self, image: str) -> AbstractAsyncContextManager[Path]:
        """An empty folder that becomes the image when the block ends well. Raises HostError, CapacityError."""

    def delete(self, image: str) -> None:
        """Delete an image; one that is gone is deleted already."""


async def write_manifest(
    folder: Path,
    *,
    name: str,
    kind: ImageKind,
    files: list[str],
    image_format: str = "",
    virtual_size: int = 0,
    cmdline: str = "",
    recipe: str = "",
    packages: Mapping[str, str] | None = None,
    cloud_init: bool = False,
) -> ImageManifest:
    """Measure the files and write the manifest beside them."""
    rows = [
        ImageFile(name=file, size=(folder / file).stat().st_size, sha256=await sha256_file(folder / file))
        for file in sorted(files)
    ]
    manifest = ImageManifest(
        name=name,
        kind=kind,
        files=rows,
        format=image_format,
        virtual_size=virtual_size,
        cmdline=cmdline,
        recipe=recipe,
        packages=dict(packages or {}),
        cloud_init=cloud_init,
    )
    (folder / MANIFEST).write_text(
        json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    return manifest


def read_manifest(folder: Path) -> ImageManifest:
    """The manifest of an image folder. Raises NotFoundError."""
    try:
        return ImageManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise NotFoundError("this host has no copy of the image", field="image", value=folder.name) from None
