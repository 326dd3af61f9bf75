"""The controller's part in the data channel: consoles and uploads between the API and the hosts.

A client of the API needs no way to the hosts: bytes come over the API and go on over `lib.stream` with a ticket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from serai.controller.hosts import tickets
from serai.controller.hosts.uploads import Uploads
from serai.controller.services.checks import need_online
from serai.controller.store import Store
from serai.lib import stream
from serai.lib.pki import TlsFiles
from serai.schema.errors import ConflictError, NotFoundError, SeraiError, UnavailableError
from serai.schema.ids import HostName, VmId
from serai.schema.image import Image, ImageManifest
from serai.schema.ticket import STREAM_PORT, Purpose
from serai.schema.vm import Vm, VmState

log = logging.getLogger(__name__)

IDENTITY = "controller"
RETRY = 0.2
"""Seconds before a console is joined again, and between two tries."""
SETTLED = 5.0
"""Seconds after which a console that was joined again is well."""
PATIENCE = 30.0
"""Seconds in which a console that was lost has to be there again."""
QUEUED_MAX = 64 << 10
"""Bytes typed into a console that is being joined again: more than anybody types in that time."""
RUNS = (VmState.RUNNING, VmState.PAUSED)
ENDS = (VmState.STOPPED, VmState.CRASHED)

Join = Callable[[HostName, VmId], Awaitable[tuple[stream.Reader, stream.Writer]]]
Find = Callable[[VmId], Awaitable[Vm]]


class Console:
    """A VM's console, wherever the VM is: when a host hangs up, as it does when the VM has moved, it is joined again.

    What is typed meanwhile is sent then, up to `QUEUED_MAX` bytes: after that `drain` waits. What the guest prints in
    that moment nobody sees.
    """

    def __init__(self, vm: VmId, join: Join, find: Find, on_close: Callable[[], None]) -> None:
        self._vm = vm
        self._join = join
        self._find = find
        self._on_close = on_close
        self._reader: stream.Reader | None = None
        self._writer: stream.Writer | None = None
        self._queued = bytearray()
        self._sends = asyncio.Event()
        """Set while what is queued can be sent, and once there is no more to send to."""
        self._lost = 0.0
        """When what it had was lost, on the loop's clock; that of the last time that it was well before."""
        self._joined = 0.0
        self._closing: asyncio.Task[None] | None = None
        self.ended = ""

    async def join(self, host: HostName) -> None:
        """Join it on this host. Raises SeraiError."""
        self._reader, self._writer = await self._join(host, self._vm)
        self._joined = asyncio.get_running_loop().time()
        self._sends.set()

    async def read(self, n: int) -> bytes:
        """Up to `n` bytes; empty at the end."""
        while self._reader is not None:
            try:
                data = await self._reader.read(n)
            except SeraiError as error:
                log.info("console of VM %s: %s", self._vm, error)
                data = b""
            if data:
                self._lost = 0.0
                return data
            await self._join_again()
        self._sends.set()
        return b""

    async def _join_again(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._lost or loop.time() > self._joined + SETTLED:
            self._lost = loop.time()
        await self._leave()
        while loop.time() < self._lost + PATIENCE:
            await asyncio.sleep(RETRY)
            try:
                status = (await self._find(self._vm)).status
            except NotFoundError:
                self.ended = "the VM is deleted"
                return
            if status.state in ENDS:
                self.ended = (
                    f"the VM is {status.state}: {status.reason}" if status.reason else f"the VM is {status.state}"
                )
                return
            if status.host is None or status.state not in RUNS:
                continue
            try:
                await self.join(status.host)
                await self.drain()
                return
            except SeraiError as error:
                log.info("console of VM %s on %s: %s", self._vm, status.host, error)
        self.ended = "the VM's host does not answer"

    async def _leave(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        self._sends.clear()
        if writer is not None:
            await writer.close()

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        self._queued += data

    async def drain(self) -> None:
        """Send what is queued; while the console is being joined again, return if that is little."""
        if len(self._queued) > QUEUED_MAX:
            await self._sends.wait()
        if self._writer is None or not self._sends.is_set():
            return
        data, self._queued = self._queued, bytearray()
        try:
            await self._writer.write(data)
        except SeraiError:
            self._sends.clear()  # the reader finds out why, and joins again
            self._queued = data + self._queued

    def close(self) -> None:
        """Leave it."""
        self._on_close()
        self._closing = asyncio.ensure_future(self._leave())


class Relay:
    """Opens streams to hosts in the controller's own name."""

    def __init__(self, store: Store, uploads: Uploads, tls: TlsFiles | None) -> None:
        self._store = store
        self._uploads = uploads
        self._tls = tls
        self._joined: set[VmId] = set()
        """VMs whose console somebody has: QEMU takes one at a time, and would let a second one wait without a word."""

    async def _open(
        self, host: HostName, purpose: Purpose, resource: str, params: dict[str, str] | None = None
    ) -> tuple[stream.Reader, stream.Writer]:
        if self._tls is None:
            raise UnavailableError(
                "this controller has no certificate for streams", remedy="Name the folder that holds it: pki."
            )
        server = f"host.{host}"
        async with self._store.transaction() as tx:
            facts = need_online(await tx.hosts.need(host))
            ticket = await tickets.issue(tx, purpose, resource=resource, holder=IDENTITY, server=server, params=params)
        return await stream.open_stream(facts.addresses["management"], STREAM_PORT, self._tls, ticket, server=server)

    async def open_console(self, vm: Vm) -> Console:
        """A VM's serial console, on whatever host it is, and wherever it goes.

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
        console = Console(vm.id, self._join, self._find, lambda: self._joined.discard(vm.id))
        try:
            await console.join(vm.status.host)
        except BaseException:
            self._joined.discard(vm.id)
            raise
        return console

    async def _find(self, vm: VmId) -> Vm:
        async with self._store.read() as view:
            return await view.vms.get(vm)

    async def _join(self, host: HostName, vm: VmId) -> tuple[stream.Reader, stream.Writer]:
        return await self._open(host, Purpose.CONSOLE, vm)

    async def receive_upload(self, image: Image, content: AsyncIterator[bytes], size: int) -> None:
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
        params = {"name": image.name, "size": str(size)}
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
