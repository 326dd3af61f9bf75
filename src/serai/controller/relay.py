"""The controller's part in the data channel: consoles and uploads between the API and the hosts.

A client of the API needs no way to the hosts: bytes come over the API and go on over `lib.stream` with a ticket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from serai.controller.workflows.copies import STREAM_PORT
from serai.controller.workflows.shelf import Shelf, Uploads
from serai.lib import stream
from serai.lib.pki import TlsFiles
from serai.schema.errors import ConflictError, SeraiError, UnavailableError
from serai.schema.host import HostState
from serai.schema.image import Image, ImageManifest
from serai.schema.ticket import Purpose
from serai.schema.vm import Vm

IDENTITY = "controller"


class Console:
    """The writing end of a console as the API wants it: `write` queues, `drain` sends."""

    def __init__(self, writer: stream.Writer, on_close: Callable[[], None]) -> None:
        self._writer = writer
        self._on_close = on_close
        self._queued: list[bytes] = []
        self._closing: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        self._queued.append(data)

    async def drain(self) -> None:
        """Send what is queued."""
        data, self._queued = b"".join(self._queued), []
        if data:
            await self._writer.write(data)

    def close(self) -> None:
        """Hang up."""
        self._on_close()
        self._closing = asyncio.ensure_future(self._writer.close())


class Relay:
    """Opens streams to hosts in the controller's own name."""

    def __init__(self, shelf: Shelf, uploads: Uploads, tls: TlsFiles | None) -> None:
        self._shelf = shelf
        self._uploads = uploads
        self._tls = tls
        self._joined: set[str] = set()
        """VMs whose console somebody has: QEMU takes one at a time, and would let a second one wait without a word."""

    async def _open(
        self, host: str, purpose: Purpose, resource: str, params: dict[str, str] | None = None
    ) -> tuple[stream.Reader, stream.Writer]:
        found = await self._shelf.host(host)
        facts = found.status.facts
        if self._tls is None or facts is None or found.status.state is not HostState.ONLINE:
            raise UnavailableError(f"host {host} does not answer", field="host", value=host, remedy="Start its agent.")
        server = f"host.{host}"
        ticket = await self._shelf.issue_ticket(
            purpose, resource=resource, holder=IDENTITY, server=server, params=params
        )
        return await stream.open_stream(facts.addresses["management"], STREAM_PORT, self._tls, ticket.id, server=server)

    async def open_console(self, vm: Vm) -> tuple[stream.Reader, Console]:
        """A VM's serial console, on whatever host it is.

        Raises ConflictError for a VM that is not running, and where somebody has its console already.
        """
        if vm.status.host is None or vm.status.pid is None:
            raise ConflictError(
                f"VM {vm.name} is {vm.status.state}: it has no console now",
                field="state",
                value=vm.status.state,
                remedy=f"Start it: serai vm start {vm.name}.",
            )
        if vm.id in self._joined:
            raise ConflictError(
                f"somebody has the console of VM {vm.name} already",
                field="vm",
                value=vm.name,
                remedy="Wait until they have left it (Ctrl-]): it is for one at a time.",
            )
        self._joined.add(vm.id)
        try:
            reader, writer = await self._open(vm.status.host, Purpose.CONSOLE, vm.id)
        except BaseException:
            self._joined.discard(vm.id)
            raise
        return reader, Console(writer, lambda: self._joined.discard(vm.id))

    async def receive_upload(self, image: Image, content: AsyncIterator[bytes]) -> None:
        """Pass an image's content on to the host that its job chose; returns once that host has checked it."""
        try:
            host = await self._uploads.host(image.id)
        except TimeoutError:
            raise ConflictError(
                f"no job waits for the content of image {image.name}",
                field="image",
                value=image.name,
                remedy="Create the image again.",
            ) from None
        params = {"name": image.name}
        if image.spec.sha256 is not None:
            params["sha256"] = image.spec.sha256
        if image.spec.format is not None:
            params["format"] = image.spec.format
        try:
            reader, writer = await self._open(host, Purpose.IMAGE_WRITE, image.id, params)
            try:
                async for chunk in content:
                    await writer.write(chunk)
                await writer.write_eof()
                manifest = ImageManifest.model_validate_json(await reader.read_message())
            finally:
                await writer.close()
        except SeraiError as error:
            self._uploads.finish(image.id, error)
            raise
        self._uploads.finish(image.id, manifest)
