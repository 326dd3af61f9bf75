"""The data channel gives way: real streams and plain TCP on one shaped veth pair, told apart by the link's counters.

Nothing is timed: how the two shared is read from what each class of the link had sent when enough had passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support import observed
from tests.support.observed import Class

from serai.lib import namespace, netlink
from serai.lib.ids import new_id, new_secret
from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.lib.process import run
from serai.lib.stream import Reader, StreamCut, StreamServer, Writer, stream
from serai.schema.ticket import Purpose, Ticket

RATE = 8_000_000
PATIENCE = 60.0
STREAM_PORT, PLAIN_PORT = 7443, 9
ADDRESSES = {socket.AF_INET: ("10.9.0.1", "10.9.0.2"), socket.AF_INET6: ("fd00:9::1", "fd00:9::2")}
ORDINARY, LOWER = "1:10", "1:20"


@dataclass
class Wire:
    """Two namespaces; from `there` to `here` both a stream and plain TCP can be poured until `over`."""

    here: str
    there: str
    family: socket.AddressFamily
    tls: dict[str, TlsFiles]
    ready: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    async def sent(self, enough: Callable[[dict[str, Class]], bool]) -> dict[str, Class]:
        """What the link's classes have sent, once that is enough."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = await namespace.in_netns(self.there, lambda: observed.classes("b"))
            if enough(found):
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)

    # --- each of these in a thread of its own, in its namespace ---

    def serve(self) -> None:
        """Pour down every stream that somebody opens."""

        async def redeem(ticket: str, peer: str) -> Ticket:
            expires = datetime.now(UTC) + timedelta(minutes=5)
            return Ticket(
                id=ticket, purpose=Purpose.IMAGE_READ, resource="i", holder=peer, server="h2", expires=expires
            )

        async def pour(_ticket: Ticket, _reader: Reader, writer: Writer) -> None:
            while not self.over.is_set():
                await writer.write(bytes(64 * 1024))

        async def work() -> None:
            listen = (ADDRESSES[self.family][1], STREAM_PORT)
            async with StreamServer(self.tls["h2"], listen, redeem, {Purpose.IMAGE_READ: pour}):
                self.ready.set()
                await asyncio.to_thread(self.over.wait)

        asyncio.run(work())

    def take(self) -> None:
        """Open a stream, and read it."""

        async def work() -> None:
            address = ADDRESSES[self.family][1]
            with contextlib.suppress(StreamCut):
                async with stream(address, STREAM_PORT, self.tls["h1"], new_secret(), server="h2") as (reader, _):
                    while not self.over.is_set() and await reader.read():
                        pass

        asyncio.run(work())

    def pour_plain(self) -> None:
        """Pour down one plain connection."""
        with socket.create_server((ADDRESSES[self.family][1], PLAIN_PORT), family=self.family) as server:
            self.ready.set()
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                while not self.over.is_set():
                    connection.sendall(bytes(16 * 1024))

    def take_plain(self) -> None:
        """Read a plain connection."""
        with socket.create_connection((ADDRESSES[self.family][1], PLAIN_PORT), timeout=PATIENCE) as connection:
            while not self.over.is_set() and connection.recv(64 * 1024):
                pass


@contextlib.asynccontextmanager
async def pouring(wire: Wire, source: Callable[[], None], sink: Callable[[], None]) -> AsyncIterator[None]:
    """While this is entered, bytes flow."""
    wire.ready.clear()
    tasks = [asyncio.create_task(namespace.in_netns(wire.there, source))]
    try:
        assert await asyncio.to_thread(wire.ready.wait, PATIENCE)
        tasks.append(asyncio.create_task(namespace.in_netns(wire.here, sink)))
        yield
    finally:
        wire.over.set()
        await asyncio.gather(*tasks)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
async def wire(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Wire]:
    mark = new_id()[:6]
    here, there = f"serai-test-{mark}-a", f"serai-test-{mark}-b"
    authority = CertificateAuthority.create(tmp_path / "ca")
    tls = {name: authority.issue(name, dns=[], ips=[], dir=tmp_path / name) for name in ("h1", "h2")}
    length = 24 if request.param == socket.AF_INET else 64
    try:
        for name in (here, there):
            await namespace.create(name)
        await namespace.in_netns(here, lambda: netlink.add_veth("a", "b", peer_netns=there))
        for name, link, address in zip((here, there), "ab", ADDRESSES[request.param], strict=True):
            options = ["nodad"] if request.param == socket.AF_INET6 else []
            await run(["ip", "-n", name, "address", "add", f"{address}/{length}", "dev", link, *options])
            await namespace.in_netns(name, lambda link=link: netlink.set_link_sync(link, up=True))  # type: ignore[misc] # a default argument binds the loop's value
        yield Wire(here, there, request.param, tls)
    finally:
        for name in (here, there):
            await namespace.delete(name)


async def test_a_stream_has_the_link_while_it_is_alone_and_gives_way_to_others(wire: Wire) -> None:
    for name, link in ((wire.here, "a"), (wire.there, "b")):
        await namespace.in_netns(name, lambda link=link: netlink.shape(link, RATE))  # type: ignore[misc] # as above
    async with pouring(wire, wire.serve, wire.take):
        alone = await wire.sent(lambda now: now[LOWER].sent > 1_000_000)
        # Far more than its own share, which is all that it would have if others wanted the rest.
        assert alone[LOWER].borrowed > alone[LOWER].own
        assert alone[ORDINARY].sent < 50_000
        # What the other end answers is marked as well.
        back = await namespace.in_netns(wire.here, lambda: observed.classes("a"))
        assert back[LOWER].sent > 0
        async with pouring(wire, wire.pour_plain, wire.take_plain):
            begun = await wire.sent(lambda now: now[ORDINARY].sent > 500_000)
            both = await wire.sent(lambda now: now[ORDINARY].sent > begun[ORDINARY].sent + 2_000_000)
    ordinary, lower = (both[number].sent - begun[number].sent for number in (ORDINARY, LOWER))
    assert lower < ordinary / 4
    # And yet it never stands still.
    assert lower > 0


async def test_a_link_that_is_not_shaped_takes_no_notice(wire: Wire) -> None:
    async with pouring(wire, wire.serve, wire.take):
        deadline = time.monotonic() + PATIENCE
        while await namespace.in_netns(wire.there, lambda: observed.sent("b")) < 1_000_000:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert await namespace.in_netns(wire.there, lambda: observed.classes("b")) == {}
