"""Certificates end, and nobody notices: a real nats-server, real streams, and real time running out.

The certificates at the begin were issued almost two years ago: they have seconds left.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serai.controller.reconcilers.certificates import Certificates
from serai.controller.store import Store
from serai.host.certificates import HostCertificates
from serai.lib import natsserver
from serai.lib.bus import BusDenied, Message, NoResponders
from serai.lib.clock import ManualClock, SystemClock
from serai.lib.ids import new_id
from serai.lib.natsbus import NatsBus
from serai.lib.natsserver import ANY_PORT, NatsConfig, NatsServer, Permissions
from serai.lib.pki import LEAF_LIFE, CertificateAuthority, TlsFiles, qemu_folder, write_qemu_folder
from serai.lib.stream import Reader, StreamServer, Writer, open_stream
from serai.schema.certificate import SignCertificate
from serai.schema.encoding import encode
from serai.schema.errors import UnauthorizedError, UnavailableError
from serai.schema.host import Host, HostSpec, HostState, HostStatus
from serai.schema.ids import HostId, HostName
from serai.schema.subjects import Subjects, controller_permissions, host_permissions
from serai.schema.ticket import Purpose, Ticket

DEADLINE = 30
LEFT = timedelta(seconds=8)
"""Until the certificates at the begin end."""


class World:
    """A controller with its bus, and the host h1 with its streams."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        self.store = store
        CertificateAuthority.create(folder / "ca")
        long_ago = CertificateAuthority.load(folder / "ca", clock=ManualClock(datetime.now(UTC) - LEAF_LIFE + LEFT))
        self.controller = long_ago.issue("controller", dns=[], ips=["127.0.0.1"], dir=folder / "ctl")
        for host in ("h1", "h2"):
            long_ago.issue_host(host, folder / host)
        self.host = TlsFiles.in_folder(folder / "h1")
        self.end = max(self.controller.expires, self.host.expires)
        shutil.copytree(folder / "h1", folder / "old")
        rights = {"controller": controller_permissions()}
        rights |= {f"host.{host}": host_permissions(host) for host in ("h1", "h2")}
        permissions = {who: Permissions(tuple(publish), tuple(hear)) for who, (publish, hear) in rights.items()}
        self.server = NatsServer(NatsConfig("127.0.0.1", ANY_PORT, self.controller, permissions), folder / "nats")
        self.streams = StreamServer(self.host, ("127.0.0.1", 0), self.redeem, {Purpose.CONSOLE: echo})
        self.certificates = Certificates(
            store,
            CertificateAuthority.load(folder / "ca"),
            self.controller,
            SystemClock(),
            lambda: natsserver.reload(folder / "nats"),
        )

    async def redeem(self, ticket: str, peer: str) -> Ticket:
        return Ticket(
            id=ticket,
            purpose=Purpose.CONSOLE,
            resource="vm",
            holder=peer,
            server="host.h1",
            expires=datetime.now(UTC) + timedelta(minutes=1),
        )

    async def connect(self, tls: TlsFiles, timeout: float = DEADLINE) -> NatsBus:
        return await NatsBus.connect(self.server.url, tls, "test", timeout=timeout)

    async def open(self, tls: TlsFiles) -> tuple[Reader, Writer]:
        return await open_stream("127.0.0.1", self.streams.port, tls, os.urandom(16).hex(), server="host.h1")

    async def past_the_end(self) -> None:
        """Wait until what was issued at the begin is not valid any more."""
        while datetime.now(UTC) <= self.end:
            await asyncio.sleep(0.1)


async def echo(_: Ticket, reader: Reader, writer: Writer) -> None:
    async for data in reader:
        await writer.write(data)


async def speaks(stream: tuple[Reader, Writer]) -> bool:
    await stream[1].write(b"word")
    return await stream[0].readexactly(4) == b"word"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await Store.open(tmp_path / "serai.db")
    it = World(tmp_path, store)
    async with store.transaction() as tx:
        for name in ("h1", "h2"):
            status = HostStatus(state=HostState.ONLINE)
            await tx.hosts.insert(
                Host(
                    name=HostName(name),
                    id=HostId(new_id()),
                    generation=1,
                    created=tx.now,
                    spec=HostSpec(),
                    status=status,
                )
            )
    await it.server.start()
    async with it.streams:
        yield it
    await it.server.stop()
    await store.close()


async def test_renewed_without_an_outage(world: World, tmp_path: Path) -> None:
    controller, host = await world.connect(world.controller), await world.connect(world.host)
    lost: list[str] = []

    async def back() -> None:
        lost.append("a connection")

    async def answer(_: Message) -> bytes:
        return b"here"

    controller.on_reconnect(back)
    host.on_reconnect(back)
    await host.subscribe(Subjects.host_command("h1"), answer)
    before = await world.open(world.controller)
    gid = pwd.getpwnam("serai-qemu").pw_gid
    migration = TlsFiles.in_folder(qemu_folder(tmp_path / "h1"))
    write_qemu_folder(migration, tmp_path / "qemu", gid)

    await world.certificates.listen(controller)
    await world.certificates.look()
    await HostCertificates("h1", tmp_path / "h1", host, SystemClock()).renew()
    world.streams.reload()
    write_qemu_folder(migration, tmp_path / "qemu", gid)
    await world.past_the_end()

    assert await controller.request(Subjects.host_command("h1"), b"?", DEADLINE) == b"here"
    assert await speaks(before)
    after = await world.open(world.controller)
    assert await speaks(after)
    for stream in (before, after):
        await stream[1].close()
    assert lost == []
    theirs = TlsFiles(*(tmp_path / "qemu" / name for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem")))
    assert theirs.expires == migration.expires > datetime.now(UTC) + LEAF_LIFE / 2
    theirs.server_context()

    # What they showed before is worth nothing now.
    old = TlsFiles.in_folder(tmp_path / "old")
    with pytest.raises(UnavailableError):
        await world.connect(old, timeout=2)
    with pytest.raises((UnauthorizedError, UnavailableError)):
        await world.open(old)

    # And a bus that was away takes them in again.
    await world.server.kill()
    async with asyncio.timeout(DEADLINE):
        while controller.connected or host.connected:
            await asyncio.sleep(0.01)
    await world.server.start()
    assert await _asked_again(controller, Subjects.host_command("h1")) == b"here"
    for bus in (controller, host):
        await bus.close()


async def _asked_again(bus: NatsBus, subject: str) -> bytes:
    """The answer, once whoever listens there has joined the bus again as well."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await bus.request(subject, b"?", DEADLINE)
            except NoResponders:
                await asyncio.sleep(0.05)


async def test_no_host_asks_in_anothers_name(world: World) -> None:
    controller, other = (
        await world.connect(world.controller),
        await world.connect(TlsFiles.in_folder(world.folder / "h2")),
    )
    await world.certificates.listen(controller)
    ask = encode(SignCertificate(identity="host.h1", request=""))
    with pytest.raises(BusDenied):
        await other.request(Subjects.certificate("h1"), ask, DEADLINE)
    with pytest.raises(UnauthorizedError):
        await other.request(Subjects.certificate("h2"), ask, DEADLINE)
    for bus in (controller, other):
        await bus.close()
