"""What every bus does: MemBus, and NatsBus over a real nats-server with TLS and permissions."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from serai.lib.bus import MAX_PAYLOAD, Bus, BusTimeout, Message, NoResponders
from serai.lib.membus import MemBus
from serai.lib.natsbus import NatsBus
from serai.lib.natsserver import ANY_PORT, NatsConfig, NatsServer, Permissions
from serai.lib.pki import CertificateAuthority
from serai.schema.errors import ConflictError, InvalidError, SeraiError, UnavailableError

ALL = Permissions(publish=("t.>",), subscribe=("t.>",))
DEADLINE = 20
SHORT = 1
"""Seconds for a request that nobody may answer."""

Connect = Callable[[str], Awaitable[Bus]]


@pytest.fixture(params=["mem", "nats"])
async def connect(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connect]:
    """A function from identity ('a', 'b') to a bus connected as that."""
    if request.param == "mem":
        shared = MemBus()

        async def same(_identity: str) -> Bus:
            return shared

        yield same
        await shared.close()
        return
    authority = CertificateAuthority.create(tmp_path / "ca")
    tls = authority.issue("bus", dns=[], ips=["127.0.0.1"], dir=tmp_path / "bus")
    server = NatsServer(NatsConfig("127.0.0.1", ANY_PORT, tls, {"host.a": ALL, "host.b": ALL}), tmp_path / "nats")
    await server.start()
    open_buses: list[NatsBus] = []

    async def over_nats(identity: str) -> Bus:
        files = authority.issue(f"host.{identity}", dns=[], ips=[], dir=tmp_path / identity)
        bus = await NatsBus.connect(server.url, files, identity)
        open_buses.append(bus)
        return bus

    yield over_nats
    for bus in open_buses:
        await bus.close()
    await server.stop()


@pytest.fixture
async def a(connect: Connect) -> Bus:
    return await connect("a")


@pytest.fixture
async def b(connect: Connect) -> Bus:
    return await connect("b")


async def shout(message: Message) -> bytes:
    return message.payload.upper()


async def test_a_request_gets_what_the_handler_returns(a: Bus, b: Bus) -> None:
    await b.subscribe("t.shout", shout)
    assert await a.request("t.shout", b"hello", DEADLINE) == b"HELLO"
    assert a.connected


async def test_an_empty_reply_is_a_reply(a: Bus, b: Bus) -> None:
    await b.subscribe("t.shout", shout)
    assert await a.request("t.shout", b"", DEADLINE) == b""


async def test_wildcards_and_order(a: Bus, b: Bus) -> None:
    seen: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue()

    def into(name: str) -> Callable[[Message], Awaitable[None]]:
        async def handle(message: Message) -> None:
            assert message.reply is None
            await asyncio.sleep(0)
            seen.put_nowait((name, message.subject, message.payload))

        return handle

    await b.subscribe("t.host.*.up", into("star"))
    await b.subscribe("t.vm.>", into("rest"))
    for subject in ("t.host.h1.up", "t.host.h1", "t.host.h1.up.more", "t.vm", "t.vm.1", "t.vm.1.state"):
        await a.publish(subject, b"1")
    for number in range(50):
        await a.publish("t.vm.2", str(number).encode())
    async with asyncio.timeout(DEADLINE):
        got = [await seen.get() for _ in range(53)]
    assert ("star", "t.host.h1.up", b"1") in got
    assert [(s, p) for n, s, p in got if n == "rest"] == [
        ("t.vm.1", b"1"),
        ("t.vm.1.state", b"1"),
        *(("t.vm.2", str(number).encode()) for number in range(50)),
    ]


async def test_a_queue_group_shares_the_messages(a: Bus, b: Bus) -> None:
    workers = [0, 0]
    everyone: list[bytes] = []
    done = asyncio.Event()

    def worker(index: int) -> Callable[[Message], Awaitable[bytes]]:
        async def handle(_message: Message) -> bytes:
            workers[index] += 1
            return b"done"

        return handle

    async def listen(message: Message) -> None:
        everyone.append(message.payload)
        if len(everyone) == 100:
            done.set()

    await b.subscribe("t.work", worker(0), queue="workers")
    await a.subscribe("t.work", worker(1), queue="workers")
    await b.subscribe("t.work", listen)
    for _ in range(100):
        await a.request("t.work", b"x", DEADLINE)
    async with asyncio.timeout(DEADLINE):
        await done.wait()
    assert sum(workers) == 100
    assert all(workers)


async def test_no_responders_is_said_at_once(a: Bus) -> None:
    with pytest.raises(NoResponders):
        await a.request("t.nobody", b"", DEADLINE)


async def test_after_unsubscribe_there_are_no_responders(a: Bus, b: Bus) -> None:
    subscription = await b.subscribe("t.shout", shout)
    assert subscription.subject == "t.shout"
    assert await a.request("t.shout", b"x", DEADLINE) == b"X"
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    # The other connection's word may overtake ours to the server. Until it is there, a request still goes to the
    # subscriber, which answers it no more.
    with pytest.raises(NoResponders):
        async with asyncio.timeout(DEADLINE):
            while True:
                with contextlib.suppress(BusTimeout):
                    await a.request("t.shout", b"x", SHORT)


async def test_a_request_without_reply_times_out(a: Bus, b: Bus) -> None:
    async def mute(_message: Message) -> None:
        return None

    await b.subscribe("t.mute", mute)
    with pytest.raises(BusTimeout):
        await a.request("t.mute", b"", 0.1)


async def test_a_handlers_error_reaches_the_requester(a: Bus, b: Bus) -> None:
    async def refuse(_message: Message) -> bytes:
        raise ConflictError("the VM is on the move", field="vm", value="web1", remedy="Wait.")

    async def fail(_message: Message) -> bytes:
        raise ZeroDivisionError("bad sum")

    await b.subscribe("t.refuse", refuse)
    await b.subscribe("t.fail", fail)
    with pytest.raises(ConflictError) as refused:
        await a.request("t.refuse", b"", DEADLINE)
    assert (refused.value.info.field, refused.value.info.value, refused.value.info.remedy) == ("vm", "web1", "Wait.")
    with pytest.raises(SeraiError, match="bad sum"):
        await a.request("t.fail", b"", DEADLINE)


async def test_a_handlers_error_does_not_end_the_subscription(a: Bus, b: Bus) -> None:
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def fragile(message: Message) -> None:
        if message.payload == b"bad":
            raise ValueError("bad message")
        seen.put_nowait(message.payload)

    await b.subscribe("t.in", fragile)
    await a.publish("t.in", b"bad")
    await a.publish("t.in", b"good")
    async with asyncio.timeout(DEADLINE):
        assert await seen.get() == b"good"


async def test_requests_are_handled_concurrently(a: Bus, b: Bus) -> None:
    second = asyncio.Event()

    async def meet(message: Message) -> bytes:
        if message.payload == b"second":
            second.set()
        await second.wait()
        return message.payload

    await b.subscribe("t.meet", meet)
    first = asyncio.create_task(a.request("t.meet", b"first", DEADLINE))
    await asyncio.sleep(0)
    assert await a.request("t.meet", b"second", DEADLINE) == b"second"
    assert await first == b"first"


async def test_what_cannot_be_sent_is_refused(a: Bus) -> None:
    big = bytes(MAX_PAYLOAD)
    await a.publish("t.big", big)
    with pytest.raises(InvalidError, match="payload"):
        await a.publish("t.big", big + b"x")
    for subject in ("", "t..x", "t.*", "t.>", "t x", "t.x\r\n"):
        with pytest.raises(InvalidError):
            await a.publish(subject, b"")
    with pytest.raises(InvalidError):
        await a.subscribe("t.>.x", shout)


async def test_after_close_nothing_passes(a: Bus) -> None:
    await a.close()
    await a.close()
    assert not a.connected
    with pytest.raises(UnavailableError):
        await a.publish("t.x", b"")
    with pytest.raises(UnavailableError):
        await a.request("t.x", b"", 1)
    with pytest.raises(UnavailableError):
        await a.subscribe("t.x", shout)
