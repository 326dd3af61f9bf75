"""A host's images: built, imported, fetched from another host over the data channel, and served to others.

A copy is checked before each use, serving it included. A damaged one is dropped and the command refused with
NotFoundError, its field `image` and its value the id; the controller then brings another copy.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from serai.drivers.image.base import MANIFEST, Build, ImageImporter, ImageRepository, read_manifest
from serai.lib.creations import Creations
from serai.lib.pki import TlsFiles
from serai.lib.room import need_room
from serai.lib.stream import Reader, Writer, stream
from serai.lib.streamfile import receive_file, send_file
from serai.schema.commands.image import CreateImage, DeleteImage, FetchImage
from serai.schema.errors import InvalidError, NotFoundError
from serai.schema.image import ImageManifest, ImageSource
from serai.schema.launch import Launch
from serai.schema.ticket import Ticket

Report = Callable[[str, float | None], None]


class HostImages:
    """`builders` maps recipes to builders, which cache what they built for the whole machine."""

    def __init__(
        self, *, store: ImageRepository, builders: Mapping[str, Build], importer: ImageImporter, tls: TlsFiles | None
    ) -> None:
        self.store = store
        self._builders = builders
        self._importer = importer
        self._tls = tls
        self._images = Creations("image")

    async def check_boot(self, launch: Launch) -> None:
        """Check the image that the VM boots from. Raises NotFoundError (see the module's docstring)."""
        if launch.boot is not None:
            await self.store.check(launch.boot.image)

    async def _here(self, image: str) -> ImageManifest | None:
        """The manifest, if this host has an intact copy."""
        try:
            return await self.store.check(image)
        except NotFoundError:
            return None

    async def make(self, body: CreateImage, report: Report) -> ImageManifest:
        """Build or download. An intact copy that is here already stays."""

        async def work() -> ImageManifest:
            return await self._here(body.image) or await self._make(body, report)

        return await self._images.create(body.image, work)

    async def _make(self, body: CreateImage, report: Report) -> ImageManifest:
        async with self.store.adding(body.image) as folder:
            if body.spec.source is ImageSource.BUILD:
                await self._build(body.spec.recipe or "", folder, report)
            elif body.spec.source is ImageSource.URL:
                spec = body.spec
                await self._importer.from_url(spec.url or "", spec.sha256, body.name, folder, report, spec.format)
            else:
                raise InvalidError("an upload comes over the data channel", field="spec.source", value=body.spec.source)
        return self.store.manifest(body.image)

    async def _build(self, recipe: str, folder: Path, report: Report) -> None:
        build = self._builders.get(recipe)
        if build is None:
            raise InvalidError(
                "there is no such recipe",
                field="spec.recipe",
                value=recipe,
                remedy=f"Choose one of {', '.join(sorted(self._builders))}.",
            )
        # If another host agent of this machine is building it, this waits for the result and copies it.
        cached = await build(report)
        for row in [MANIFEST, *(file.name for file in read_manifest(cached).files)]:
            await asyncio.to_thread(shutil.copyfile, cached / row, folder / row)

    async def fetch(self, body: FetchImage, report: Report) -> None:
        """Fetch a copy from another host. An intact one of the same manifest that is here already stays."""

        async def work() -> None:
            here = await self._here(body.image)
            if here is None or here.files != body.manifest.files:
                await self._fetch(body, report)

        await self._images.create(body.image, work)

    async def _fetch(self, body: FetchImage, report: Report) -> None:
        if self._tls is None:
            raise InvalidError("this host has no certificate for the data channel", field="image", value=body.image)
        total = sum(file.size for file in body.manifest.files) or 1
        before = 0
        async with (
            self.store.adding(body.image) as folder,
            stream(body.address, body.port, self._tls, body.ticket, server=body.server) as (reader, writer),
        ):
            need_room(folder, total, "image", body.manifest.name)
            for file in sorted(body.manifest.files, key=lambda row: row.name):

                def progress(done: int, _total: int, before: int = before) -> None:
                    report("fetching", (before + done) / total)

                await receive_file(reader, writer, folder / file.name, sha256=file.sha256, progress=progress)
                before += file.size
            (folder / MANIFEST).write_text(body.manifest.model_dump_json(), encoding="utf-8")

    async def drop(self, body: DeleteImage) -> None:
        """Delete this host's copy; cancel its creation if that is under way."""
        async with self._images.deleting(body.image):
            self.store.delete(body.image)

    # --- the data channel's handlers ---

    async def serve_read(self, ticket: Ticket, reader: Reader, writer: Writer) -> None:
        """Send the image's files, ordered by name, to the ticket's holder."""
        manifest = await self.store.check(ticket.resource)
        for file in sorted(manifest.files, key=lambda row: row.name):
            sent = await send_file(reader, writer, self.store.file(ticket.resource, file.name))
            if sent.sha256 != file.sha256:
                # The receiver has refused it. Size and times looked right: the disk returned other bytes.
                self.store.distrust(ticket.resource, f"{file.name} does not have its checksum")
                return

    async def serve_write(self, ticket: Ticket, reader: Reader, writer: Writer) -> None:
        """Receive an uploaded disk image, and answer with its manifest."""
        total = int(ticket.params.get("size", "0"))

        async def work() -> None:
            async with self.store.adding(ticket.resource) as folder:
                await self._importer.from_stream(
                    aiter(reader),
                    total,
                    ticket.params.get("sha256"),
                    ticket.params["name"],
                    folder,
                    lambda phase, fraction: None,
                    ticket.params.get("format"),
                )

        await self._images.create(ticket.resource, work)
        await writer.write_message(self.store.manifest(ticket.resource).model_dump_json().encode())
