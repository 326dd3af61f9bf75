"""A host's image store: one folder per image id, whole or not there. It knows nothing of the network."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from serai.drivers.image.base import MANIFEST, read_manifest
from serai.lib.streamfile import sha256_file
from serai.schema.errors import HostError, InvalidError
from serai.schema.image import ImageKind, ImageManifest


class ImageStore:
    """Images below `root`. Files are readable to QEMU's user: they hold nothing secret."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> None:
        """Make the folder, and sweep what a crash left half done."""
        self._root.mkdir(parents=True, exist_ok=True)
        os.chmod(self._root, 0o755)  # noqa: S103 - QEMU's user reads kernels here
        for part in self._root.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)

    def folder(self, image: str) -> Path:
        """Where an image is, or would be."""
        if len(image) != 12 or not all(mark in "0123456789abcdef" for mark in image):
            raise InvalidError("an image id is 12 hexadecimal characters", field="image", value=image)
        return self._root / image

    def has(self, image: str) -> bool:
        return (self.folder(image) / MANIFEST).exists()

    def manifest(self, image: str) -> ImageManifest:
        """Raises NotFoundError."""
        return read_manifest(self.folder(image))

    def file(self, image: str, name: str) -> Path:
        """One of the image's files. Raises NotFoundError, InvalidError for a name that the manifest does not have."""
        if name not in {row.name for row in self.manifest(image).files}:
            raise InvalidError("the image has no such file", field="file", value=name)
        return self.folder(image) / name

    def disk(self, image: str) -> tuple[Path, str]:
        """(file, format) of a disk image. Raises InvalidError for an image without a disk."""
        manifest = self.manifest(image)
        if manifest.kind is not ImageKind.DISK:
            raise InvalidError("the image has no disk to clone", field="image", value=manifest.name)
        return self.file(image, f"disk.{manifest.format}"), manifest.format

    @contextlib.asynccontextmanager
    async def adding(self, image: str) -> AsyncIterator[Path]:
        """An empty folder that becomes the image when the block ends well, its checksums verified; else it is gone."""
        part = self._root / f".part-{image}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            for row in read_manifest(part).files:
                if await sha256_file(part / row.name) != row.sha256:
                    raise HostError(
                        f"the image's file {row.name} does not have its checksum", field="image", value=image
                    )
                os.chmod(part / row.name, 0o644)
            os.chmod(part, 0o755)  # noqa: S103 - as above
            shutil.rmtree(self.folder(image), ignore_errors=True)
            part.rename(self.folder(image))
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def delete(self, image: str) -> None:
        """Delete an image; one that is gone is deleted already."""
        shutil.rmtree(self.folder(image), ignore_errors=True)
