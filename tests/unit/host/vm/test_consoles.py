"""A VM's console over the data channel: bytes both ways, and an error that says why there are none."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serai.host.vm.consoles import Consoles
from serai.lib.paths import HostPaths
from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.lib.stream import StreamServer, stream
from serai.schema.errors import UnavailableError
from serai.schema.ticket import Purpose, Ticket

VM = "0123456789ab"


class Host:
    """Serves the console of one VM to itself."""

    def __init__(self, folder: Path) -> None:
        self.paths = HostPaths(state=folder / "state", run=folder / "run")
        authority = CertificateAuthority.create(folder / "ca")
        self.tls: TlsFiles = authority.issue("host.h1", dns=[], ips=["127.0.0.1"], dir=folder / "pki")
        handlers = {str(Purpose.CONSOLE): Consoles(self.paths).serve}
        self.server = StreamServer(self.tls, ("127.0.0.1", 0), self._redeem, handlers)

    async def _redeem(self, ticket: str, _peer: str) -> Ticket:
        expires = datetime.now(UTC) + timedelta(minutes=1)
        return Ticket(
            id=ticket, purpose=Purpose.CONSOLE, resource=VM, holder="host.h1", server="host.h1", expires=expires
        )


async def test_what_is_typed_is_echoed_by_the_guest_until_it_hangs_up(tmp_path: Path) -> None:
    host = Host(tmp_path)
    socket = host.paths.console_socket(VM)
    socket.parent.mkdir(parents=True)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    guest = await asyncio.start_unix_server(echo, socket)
    async with (
        guest,
        host.server,
        stream("127.0.0.1", host.server.port, host.tls, "1" * 32, server="host.h1") as (reader, writer),
    ):
        await writer.write(b"login\n")
        assert b"".join([chunk async for chunk in reader]) == b"LOGIN\n"


async def test_no_console_is_an_error_with_its_reason(tmp_path: Path) -> None:
    host = Host(tmp_path)
    async with host.server:
        with pytest.raises(UnavailableError, match="console does not answer: No such file or directory"):
            async with stream("127.0.0.1", host.server.port, host.tls, "1" * 32, server="host.h1") as (reader, _):
                async for _chunk in reader:
                    pytest.fail("nothing is behind it")
