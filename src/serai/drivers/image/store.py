"""A host's image store: one folder per image id, whole or not there. It knows nothing of the network.

Each use asks `check` first: a stat per file if the copy is as it was when its checksums were verified (see seal.py),
all checksums if it is not. A damaged copy is dropped, and reported as if it had never been here: the same error, by
which whoever asked gets another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import ValidationError

from serai.drivers.image import seal
from serai.drivers.image.base import MANIFEST, read_manifest
from serai.lib import atomicfile
from serai.schema.errors import HostError, InvalidError, NotFoundError
from serai.schema.image import ImageKind, ImageManifest

log = logging.getLogger(__name__)

REMEDY = "Start the action again: the controller has the copy replaced."


class ImageStore:
    """Images below `root`. Files are readable to QEMU's user, and written by nobody: they hold nothing secret."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[ImageManifest, seal.Signature]] = {}
        self._checking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

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

    def manifest(self, image: str) -> ImageManifest:
        return read_manifest(self.folder(image))

    async def check(self, image: str) -> ImageManifest:
        """The manifest of a copy that may be used. A damaged one is dropped.

        Raises NotFoundError with field `image` and the id as its value: there is no copy, or there is none any more.
        """
        folder = self.folder(image)
        known = self._known.get(image)
        if known is not None and seal.signature(folder, known[0]) == known[1]:
            return known[0]
        self._known.pop(image, None)
        async with self._checking[image]:
            try:
                manifest = read_manifest(folder)
                wrong = None if seal.intact(folder, manifest) else await self._mend(folder, manifest)
            except ValidationError:
                wrong = f"{MANIFEST} cannot be read"
            if wrong is not None:
                raise self._drop_damaged(image, wrong)
            # What the stamp says, not what a new look would: the files may have changed since the comparison.
            stamp = seal.stamped(folder)
            if stamp is not None:
                self._known[image] = (manifest, stamp)
            return manifest

    async def _mend(self, folder: Path, manifest: ImageManifest) -> str | None:
        """What is wrong with a copy that is not as it was; one that is sound gets a new seal."""
        wrong = await seal.damage(folder, manifest)
        if wrong is None:
            log.warning("image %s (%s) was touched; its checksums are right", manifest.name, folder.name)
            await seal.seal(folder)
        return wrong

    def _drop_damaged(self, image: str, wrong: str) -> NotFoundError:
        log.error("this host's copy of image %s is damaged, and dropped: %s", image, wrong)
        self.delete(image)
        return NotFoundError(
            f"this host's copy of the image was damaged ({wrong}), and has been dropped",
            field="image",
            value=image,
            remedy=REMEDY,
        )

    def distrust(self, image: str, wrong: str) -> None:
        self._drop_damaged(image, wrong)

    def file(self, image: str, name: str) -> Path:
        return self._file(image, self.manifest(image), name)

    def _file(self, image: str, manifest: ImageManifest, name: str) -> Path:
        if name not in {row.name for row in manifest.files}:
            raise InvalidError("the image has no such file", field="file", value=name)
        return self.folder(image) / name

    async def checked_file(self, image: str, name: str) -> Path:
        """Like `file`, of a copy that was checked just now. Raises NotFoundError as `check` does."""
        return self._file(image, await self.check(image), name)

    async def checked_disk(self, image: str) -> tuple[Path, str]:
        """(file, format) of a disk image that was checked just now.

        Raises InvalidError for an image without a disk, NotFoundError as `check` does.
        """
        manifest = await self.check(image)
        if manifest.kind is not ImageKind.DISK:
            raise InvalidError("the image has no disk to clone", field="image", value=manifest.name)
        return self._file(image, manifest, f"disk.{manifest.format}"), manifest.format

    @contextlib.asynccontextmanager
    async def adding(self, image: str) -> AsyncIterator[Path]:
        """An empty folder that becomes the image when the block ends well, verified and durable; else it is gone.

        One at a time for each image: the caller's matter. A copy that is there is replaced by two renames, so that
        after a crash there is the old one, none, or the new one, each whole. Raises HostError, CapacityError.
        """
        part = self._root / f".part-{image}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            try:
                await seal.seal(part)
                os.chmod(part, 0o755)  # noqa: S103 - as above
                self.delete(image)
                part.rename(self.folder(image))
                await asyncio.to_thread(atomicfile.sync_folder, self._root)
            except OSError as error:
                raise HostError(
                    f"the image cannot be written: {error.strerror}",
                    field="image",
                    value=image,
                    remedy="Look at the disk of the host's state folder.",
                ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def delete(self, image: str) -> None:
        """Delete an image; one that is gone is deleted already. It is out of sight at once, or not deleted."""
        self._known.pop(image, None)
        gone = self._root / f".part-{image}-gone"
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.folder(image).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
