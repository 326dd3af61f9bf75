"""An image builder for tests: the contract of the real ones, in a millisecond and without packages."""

from __future__ import annotations

import hashlib
from pathlib import Path

from serai.drivers.image.base import Progress, write_manifest
from serai.schema.errors import SeraiError
from serai.schema.image import ImageKind, ImageManifest


class FakeBuilder:
    """Writes a raw disk of `content`, which is also its recipe. `failure`, if any, is raised with half of it written.

    `builds` counts how often it was asked to build.
    """

    name = "fake"

    def __init__(self, content: bytes = b"fake".ljust(512, b"\0")) -> None:
        self.content = content
        self.failure: SeraiError | None = None
        self.builds = 0

    async def recipe(self) -> str:
        """A hash of the content."""
        return hashlib.sha256(self.content).hexdigest()

    async def build(self, folder: Path, progress: Progress) -> ImageManifest:
        """Write the disk and its manifest."""
        self.builds += 1
        progress("writing", 0.0)
        disk = folder / "disk.raw"
        if self.failure is not None:
            disk.write_bytes(self.content[: len(self.content) // 2])
            raise self.failure
        disk.write_bytes(self.content)
        progress("done", 1.0)
        return await write_manifest(
            folder,
            name=self.name,
            kind=ImageKind.DISK,
            files=["disk.raw"],
            image_format="raw",
            virtual_size=len(self.content),
            recipe=await self.recipe(),
        )
