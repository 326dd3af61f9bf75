"""Serial consoles of this host's VMs over the data channel: one at a time a VM, as QEMU's socket takes one."""

from __future__ import annotations

import asyncio
import contextlib

from serai.lib.paths import HostPaths
from serai.lib.stream import Reader, Writer
from serai.schema.errors import UnavailableError
from serai.schema.ticket import Ticket

CHUNK = 1 << 16


class Consoles:
    """Joins streams to QEMU's console sockets."""

    def __init__(self, paths: HostPaths) -> None:
        self._paths = paths

    async def serve(self, ticket: Ticket, reader: Reader, writer: Writer) -> None:
        """Relay both ways until either end hangs up."""
        try:
            console_reader, console_writer = await asyncio.open_unix_connection(
                str(self._paths.console_socket(ticket.resource))
            )
        except OSError as error:
            raise UnavailableError(
                f"the VM's console does not answer: {error.strerror}", field="vm", value=ticket.resource
            ) from error

        async def out() -> None:
            while data := await console_reader.read(CHUNK):
                await writer.write(data)

        async def into() -> None:
            async for data in reader:
                console_writer.write(data)
                await console_writer.drain()

        tasks = [asyncio.create_task(out()), asyncio.create_task(into())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            console_writer.close()
            with contextlib.suppress(OSError):
                await console_writer.wait_closed()
