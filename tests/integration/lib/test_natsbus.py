"""What only a bus over a network meets: a lost server, identities and their rights. Real nats-server, real TLS."""

import asyncio
import contextlib
import logging
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serai.lib.bus import BusDenied, BusTimeout, Message
from serai.lib.natsbus import NatsBus
from serai.lib.natsserver import ANY_PORT, NatsConfig, NatsServer, Permissions
from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.schema.errors import HostError, UnavailableError

DEADLINE = 30


class World:
    """A server, its CA, and buses to it that are closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = CertificateAuthority.create(folder / "ca")
        tls = self.identity("bus", ips=["127.0.0.1"])
        self.permissions = {
            "ctl": Permissions(publish=("cmd.>",), subscribe=("report.>",)),
            "h1": Permissions(publish=("report.h1.>",), subscribe=("cmd.h1",)),
        }
        self.server = NatsServer(NatsConfig("127.0.0.1", ANY_PORT, tls, self.permissions), folder / "nats")
        self.buses: list[NatsBus] = []

    def identity(self, name: str, ips: list[str] | None = None) -> TlsFiles:
        return self.authority.issue(name, dns=[], ips=ips or [], dir=self.folder / name)

    async def bus(self, name: str, timeout: float | None = 10) -> NatsBus:
        bus = await NatsBus.connect(self.server.url, self.identity(name), name, timeout=timeout)
        self.buses.append(bus)
        return bus


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    it = World(tmp_path)
    await it.server.start()
    yield it
    for bus in it.buses:
        await bus.close()
    await it.server.stop()


async def echo(message: Message) -> bytes:
    return message.payload


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def eventually(ask: Callable[[], Awaitable[bytes]]) -> bytes:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await ask()
            except UnavailableError:
                await asyncio.sleep(0.02)


async def test_after_a_killed_server_all_is_as_before(world: World) -> None:
    ctl, h1 = await world.bus("ctl"), await world.bus("h1")
    reports: asyncio.Queue[bytes] = asyncio.Queue()
    back = asyncio.Event()

    async def report(message: Message) -> None:
        reports.put_nowait(message.payload)

    async def noticed() -> None:
        back.set()

    await h1.subscribe("cmd.h1", echo)
    await ctl.subscribe("report.>", report)
    h1.on_reconnect(noticed)
    assert await ctl.request("cmd.h1", b"1", DEADLINE) == b"1"

    await world.server.kill()
    await until(lambda: not h1.connected and not ctl.connected)
    await h1.publish("report.h1.state", b"kept")
    waiting = asyncio.create_task(ctl.request("cmd.h1", b"2", DEADLINE))
    await world.server.start()

    async with asyncio.timeout(DEADLINE):
        await back.wait()
    # Sent while the server was away: delivered, if the other side is subscribed by then; else nobody was there.
    with contextlib.suppress(UnavailableError):
        assert await waiting == b"2"
    assert await eventually(lambda: ctl.request("cmd.h1", b"3", 1)) == b"3"
    await until(lambda: ctl.connected)
    await h1.publish("report.h1.state", b"new")
    async with asyncio.timeout(DEADLINE):
        while await reports.get() != b"new":
            pass


async def test_a_request_in_flight_says_at_once_that_the_server_was_lost(world: World) -> None:
    ctl, h1 = await world.bus("ctl"), await world.bus("h1")
    asked = asyncio.Event()

    async def hang(_message: Message) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    await h1.subscribe("cmd.h1", hang)
    waiting = asyncio.create_task(ctl.request("cmd.h1", b"", 3600))
    async with asyncio.timeout(DEADLINE):
        await asked.wait()
        await world.server.kill()
        with pytest.raises(BusTimeout, match="lost"):
            await waiting


async def test_a_bus_may_be_made_before_its_server(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.server.start()
    await world.server.stop()
    bus = await world.bus("h1", timeout=None)
    await bus.subscribe("cmd.h1", echo)
    await bus.publish("report.h1.state", b"early")
    with pytest.raises(BusTimeout):
        await bus.request("report.h1.x", b"", 0.05)
    with pytest.raises(UnavailableError, match="no bus at"):
        await world.bus("ctl", timeout=0.3)
    await world.server.start()
    ctl = await world.bus("ctl")
    assert await eventually(lambda: ctl.request("cmd.h1", b"x", 1)) == b"x"
    for one in world.buses:
        await one.close()
    await world.server.stop()


async def test_what_waits_for_an_absent_server_is_bounded(tmp_path: Path) -> None:
    world = World(tmp_path)
    bus = await NatsBus.connect("tls://127.0.0.1:1", world.identity("h1"), "h1", timeout=None)
    block = bytes(1024 * 1024)
    await bus.publish("report.h1.x", block)
    await bus.publish("report.h1.x", block)
    with pytest.raises(UnavailableError, match="away"):
        await bus.publish("report.h1.x", b"x")
    await bus.close()


async def test_rights(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ctl, h1 = await world.bus("ctl"), await world.bus("h1")
    seen: list[Message] = []

    async def record(message: Message) -> None:
        seen.append(message)

    await ctl.subscribe("report.>", record)
    with pytest.raises(BusDenied, match=r"publish to cmd\.h2"):
        await h1.request("cmd.h2", b"", DEADLINE)
    for subject in ("cmd.h2", "report.>", "_INBOX.ctl.>", ">"):
        with pytest.raises(BusDenied, match="subscription"):
            await h1.subscribe(subject, record)
    with caplog.at_level(logging.ERROR):
        await h1.publish("report.h2.state", b"forged")
        await h1.publish("report.h1.state", b"true")
        await until(lambda: len(seen) > 0 and "report.h2.state is refused" in caplog.text)
    assert [message.payload for message in seen] == [b"true"]


async def test_strangers_cannot_connect(world: World, tmp_path: Path) -> None:
    with pytest.raises(BusDenied):
        await world.bus("h9", timeout=1)
    other = CertificateAuthority.create(tmp_path / "other-ca").issue("h1", dns=[], ips=[], dir=tmp_path / "other")
    forged = TlsFiles(ca=world.identity("h1").ca, cert=other.cert, key=other.key)
    with pytest.raises(UnavailableError):
        await NatsBus.connect(world.server.url, forged, "forged", timeout=1)


async def test_an_identity_added_later_comes_in_and_others_stay(world: World) -> None:
    ctl, h1 = await world.bus("ctl"), await world.bus("h1")
    lost: list[str] = []

    async def reconnected() -> None:
        lost.append("h1")

    h1.on_reconnect(reconnected)
    await h1.subscribe("cmd.h1", echo)
    h2 = await world.bus("h2", timeout=None)
    await h2.subscribe("cmd.h2", echo)
    added = {**world.permissions, "h2": Permissions(publish=("report.h2.>",), subscribe=("cmd.h2",))}
    await world.server.reload(added)
    assert await eventually(lambda: ctl.request("cmd.h2", b"x", 1)) == b"x"
    assert await ctl.request("cmd.h1", b"y", DEADLINE) == b"y"
    assert lost == []
    await world.server.reload(world.permissions)
    await until(lambda: not h2.connected)
    assert await ctl.request("cmd.h1", b"z", DEADLINE) == b"z"


async def test_the_configuration_is_private_and_faults_are_told(world: World) -> None:
    mode = stat.S_IMODE((world.folder / "nats" / "nats.conf").stat().st_mode)
    assert mode == 0o600
    with pytest.raises(HostError, match="refused its new configuration"):
        await world.server.reload({"h1": Permissions(publish=("a..b",))})
    second = NatsServer(world.server.config, world.folder / "second")
    with pytest.raises(HostError, match="address already in use"):
        await second.start()


async def test_a_server_whose_starter_was_killed_is_taken_over(world: World) -> None:
    ctl, h1 = await world.bus("ctl"), await world.bus("h1")
    await h1.subscribe("cmd.h1", echo)
    added = {**world.permissions, "h2": Permissions(subscribe=("cmd.h2",))}
    second = NatsServer(replace(world.server.config, port=ANY_PORT, permissions=added), world.folder / "nats")
    await second.start()
    assert (second.pid, second.port) == (world.server.pid, world.server.port)
    assert await ctl.request("cmd.h1", b"x", DEADLINE) == b"x"
    await world.bus("h2")
    await second.stop()
    await until(lambda: world.server.pid is None)
    # A number that is no server's any more is not taken for one.
    third = NatsServer(world.server.config, world.folder / "nats")
    await third.start()
    assert await eventually(lambda: ctl.request("cmd.h1", b"y", 1)) == b"y"
    await third.stop()


async def test_a_server_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    tls = CertificateAuthority.create(tmp_path / "ca").issue("bus", dns=[], ips=[], dir=tmp_path / "bus")
    enter = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    server = NatsServer(NatsConfig("127.0.0.1", ANY_PORT, tls), tmp_path / "nats", prefix=enter)
    await server.start()
    assert server.port > 0
    assert server.pid is not None
    assert Path(f"/proc/{server.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    await server.stop()
    assert server.pid is None
