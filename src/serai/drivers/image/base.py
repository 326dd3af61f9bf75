"""The contract of image builders, and what all of them share: folders that appear whole or not at all.

An image is a folder with `manifest.json` and the files that it lists. Builders write into a folder that is then renamed
into place, so that a crash leaves only a `.part-` folder, which the store sweeps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
        ...

    async def build(self, folder: Path, progress: Progress) -> ImageManifest:
        """Write the image's files and its manifest into an empty folder. Raises HostError, CapacityError."""
        ...


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
