"""What the certificates of hosts and of the controller allow on the bus. Real nats-server, the lab's permissions.

A host that was taken over is not held to our own client: where it matters, it speaks through a bare NATS client.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from serai.lib.bus import BusDenied, Message, NoResponders
from serai.lib.natsbus import NatsBus
from serai.lib.natsserver import ANY_PORT, NatsConfig, NatsServer, Permissions, inbox_prefix
from serai.lib.pki import CertificateAuthority, TlsFiles, qemu_folder
from serai.lib.stream import StreamServer, open_stream
from serai.schema.errors import InvalidError, UnauthorizedError
from serai.schema.subjects import Subjects, controller_permissions, host_permissions
from serai.schema.ticket import Ticket

DEADLINE = 30
VM = "0" * 12
RIGHTS = {
    "controller": controller_permissions(),
    **{f"host.{host}": host_permissions(host) for host in ("h1", "h2", "h3")},
}


def told_by(host: str) -> list[str]:
    """What a host says to the controller."""
    return [
        Subjects.hello(host),
        Subjects.host_report(host),
        Subjects.vm_report(host, VM),
        Subjects.progress(host, VM),
        Subjects.redeem(host),
    ]


def asked_of(host: str) -> list[str]:
    """What the controller, or a migration's source, asks of a host."""
    return [Subjects.host_command(host), Subjects.vm_command(host, VM), Subjects.verdict(host, "h3")]


class World:
    def __init__(self, folder: Path) -> None:
        authority = CertificateAuthority.create(folder / "ca")
        names = {"bus": ["127.0.0.1"], **{identity: [] for identity in RIGHTS}}
        self.tls = {name: authority.issue(name, dns=[], ips=ips, dir=folder / name) for name, ips in names.items()}
        permissions = {who: Permissions(tuple(publish), tuple(hear)) for who, (publish, hear) in RIGHTS.items()}
        self.authority = authority
        self.server = NatsServer(NatsConfig("127.0.0.1", ANY_PORT, self.tls["bus"], permissions), folder / "nats")
        self._buses: dict[str, NatsBus] = {}
        self._clients: list[Client] = []
        self.refused: list[str] = []

    async def bus(self, identity: str) -> NatsBus:
        if identity not in self._buses:
            self._buses[identity] = await NatsBus.connect(self.server.url, self.tls[identity], identity)
        return self._buses[identity]

    async def bare(self, identity: str) -> Client:
        """A client with that certificate and no manners."""

        async def note(error: Exception) -> None:
            self.refused.append(str(error))

        client = await nats.connect(self.server.url, tls=self.tls[identity].client_context(), error_cb=note)
        self._clients.append(client)
        return client

    async def hear(self, identity: str, subject: str) -> list[str]:
        """The payloads of what comes there from now on; each is answered with the identity's name."""
        heard: list[str] = []

        async def answer(message: Message) -> bytes:
            heard.append(message.payload.decode())
            return identity.encode()

        await (await self.bus(identity)).subscribe(subject, answer)
        return heard

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        for bus in self._buses.values():
            await bus.close()
        await self.server.stop()


async def settled(client: Client) -> None:
    """Wait until the server has taken all that the client was told to send.

    Twice: the library writes the first ping ahead of what it has queued, and by its answer that is written.
    """
    await client.flush()
    await client.flush()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    it = World(tmp_path)
    await it.server.start()
    yield it
    await it.close()


async def test_a_host_can_do_all_it_needs(world: World) -> None:
    controller, h1, h3 = [await world.bus(one) for one in ("controller", "host.h1", "host.h3")]
    for pattern in RIGHTS["controller"][1]:
        await world.hear("controller", pattern)
    for subject in told_by("h1"):
        assert await h1.request(subject, b"word", DEADLINE) == b"controller"
    for subject in (Subjects.host_command("h1"), Subjects.vm_command("h1", "*"), Subjects.verdict("h1", "*")):
        await world.hear("host.h1", subject)
    for subject in (Subjects.host_command("h1"), Subjects.vm_command("h1", VM)):
        assert await controller.request(subject, b"ask", DEADLINE) == b"host.h1"
    assert await h3.request(Subjects.verdict("h1", "h3"), b"ask", DEADLINE) == b"host.h1"
    with pytest.raises(NoResponders):
        await h1.request(Subjects.verdict("h2", "h1"), b"ask", DEADLINE)


async def test_what_qemu_can_read_opens_no_door(world: World, tmp_path: Path) -> None:
    """Its certificate is good for migrations: neither the bus nor a stream takes it, nor does it pass for a server."""
    pki = tmp_path / "pki"
    world.authority.issue_host("h1", pki)
    agent, qemu = TlsFiles.in_folder(pki), TlsFiles.in_folder(qemu_folder(pki))
    assert (agent.identity, qemu.identity) == ("host.h1", "qemu.h1")
    assert agent.key.read_bytes() != qemu.key.read_bytes()
    client = await nats.connect(world.server.url, tls=agent.client_context(), allow_reconnect=False)
    await client.close()
    with pytest.raises(nats.errors.Error):
        await nats.connect(world.server.url, tls=qemu.client_context(), allow_reconnect=False)

    async def never(_ticket: str, _peer: str) -> Ticket:
        pytest.fail("nobody is asked about its tickets")

    async with StreamServer(agent, ("127.0.0.1", 0), never, {}) as streams:
        with pytest.raises(UnauthorizedError, match="migrations only"):
            await open_stream("127.0.0.1", streams.port, qemu, "0" * 32, server="host.h1")
    async with StreamServer(qemu, ("127.0.0.1", 0), never, {}) as forged:
        for server in ("host.h1", None):
            with pytest.raises(UnauthorizedError, match="another identity"):
                await open_stream("127.0.0.1", forged.port, agent, "0" * 32, server=server)


async def test_a_host_hears_nothing_of_others(world: World) -> None:
    h1 = await world.bus("host.h1")

    async def hear(_message: Message) -> None:
        pytest.fail("heard")

    others = [*told_by("h2"), *asked_of("h2"), "host.h2.>", "host.h2.vm.*.command", "_INBOX.host.h2.>"]
    all_hosts = ["host.*.command", "host.*.vm.*.command", "host.*.verdict.h1", "host.>", "*.h1.command", ">", "*.>"]
    inboxes = ["_INBOX.>", "_INBOX.controller.>", "_INBOX.*.h1.>", f"{inbox_prefix('controller')}.*"]
    for subject in (*others, *all_hosts, *inboxes):
        for queue in (None, "together"):
            with pytest.raises(BusDenied, match="subscription to"):
                await h1.subscribe(subject, hear, queue)


async def test_a_host_says_nothing_in_anothers_name(world: World) -> None:
    heard = [await world.hear("controller", pattern) for pattern in RIGHTS["controller"][1]]
    h1 = await world.bus("host.h1")
    asked = [await world.hear("host.h2", "host.h2.>")]
    # A verdict may be asked for, in its own name only; and nothing is left of subjects that are nobody's.
    others = [*told_by("h2"), *asked_of("h2"), f"vm.{VM}.command", f"progress.{VM}", "controller.ticket.redeem"]
    for subject in others:
        with pytest.raises(BusDenied, match=f"publish to {re.escape(subject)}"):
            await h1.request(subject, b"forged", DEADLINE)
    assert not any([*heard, *asked])


async def test_a_reply_is_heard_by_whoever_asked(world: World) -> None:
    """A host that listens to all it may, while the controller asks another."""
    spied: list[str] = []

    async def spy(msg: Msg) -> None:
        spied.append(msg.subject)

    bare = await world.bare("host.h1")
    for subject in ("host.h1.>", f"{inbox_prefix('host.h1')}.>"):
        await bare.subscribe(subject, cb=spy)
    await settled(bare)
    replies: list[str | None] = []

    async def answer(message: Message) -> bytes:
        replies.append(message.reply)
        return b"secret"

    await (await world.bus("host.h2")).subscribe(Subjects.vm_command("h2", "*"), answer)
    controller = await world.bus("controller")
    for _ in range(2):
        assert await controller.request(Subjects.vm_command("h2", VM), b"ask", DEADLINE) == b"secret"
    await settled(bare)
    assert spied == []
    # Nor can it guess where the next reply is awaited, to be faster than the one that was asked.
    assert all(re.fullmatch(r"_INBOX\.controller\.[0-9a-f]{32}", reply or "") for reply in replies)
    assert (replies[0] or "")[:32] != (replies[1] or "")[:32]


async def test_being_asked_for_a_reply_opens_no_subject(world: World) -> None:
    """A server that allows replies wherever they are asked for would let a host ask itself for one."""
    heard = await world.hear("host.h2", "host.h2.>")
    bare, accomplice = await world.bare("host.h1"), await world.bare("host.h3")
    came: asyncio.Queue[Msg] = asyncio.Queue()
    await bare.subscribe("host.h1.>", cb=came.put)
    await settled(bare)
    targets = [*asked_of("h2"), Subjects.progress("h2", VM)]
    for subject in targets:
        await bare.publish("host.h1.note", b"", reply=subject)
        await accomplice.publish(Subjects.verdict("h1", "h3"), b"", reply=subject)
        async with asyncio.timeout(DEADLINE):
            assert [(await came.get()).reply for _ in range(2)] == [subject] * 2
        for _ in range(2):
            await bare.publish(subject, b"forged")
    await settled(bare)
    controller = await world.bus("controller")
    assert await controller.request(Subjects.host_command("h2"), b"true", DEADLINE) == b"host.h2"
    assert heard == ["true"]
    assert len(world.refused) == 2 * len(targets)


async def test_nobody_is_made_to_speak_where_a_host_may_not(world: World) -> None:
    """The controller's reply to a host goes to an inbox, not where the host would like to have it said."""
    heard = await world.hear("host.h2", "host.h2.>")
    told = await world.hear("controller", Subjects.hello("*"))
    bare = await world.bare("host.h1")
    await bare.publish(Subjects.hello("h1"), b"a trap", reply=Subjects.host_command("h2"))
    await settled(bare)
    h1, controller = await world.bus("host.h1"), await world.bus("controller")
    assert await h1.request(Subjects.hello("h1"), b"a hello", DEADLINE) == b"controller"
    assert await controller.request(Subjects.host_command("h2"), b"true", DEADLINE) == b"host.h2"
    assert (told, heard) == (["a hello"], ["true"])


async def test_the_controller_says_nothing_for_a_host(world: World) -> None:
    controller = await world.bus("controller")
    for subject in (*told_by("h1"), Subjects.verdict("h1", "h2")):
        with pytest.raises(BusDenied):
            await controller.request(subject, b"", DEADLINE)
    with pytest.raises(InvalidError):
        await controller.publish(Subjects.host_command("*"), b"")
