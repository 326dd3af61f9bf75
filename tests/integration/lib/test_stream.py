"""The data channel between two identities over real TLS on loopback."""

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.lib.stream import (
    FRAME,
    Handler,
    Reader,
    StreamCut,
    StreamServer,
    Writer,
    open_stream,
    stream,
)
from serai.lib.streamfile import receive_file, send_file, sha256_file
from serai.schema.errors import ConflictError, InvalidError, SeraiError, UnauthorizedError, UnavailableError
from serai.schema.ticket import Purpose, Ticket

DEADLINE = 30


class Ends:
    """A server `h1` and a client `ctl`, with tickets that are good once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = CertificateAuthority.create(folder / "ca")
        self.h1 = authority.issue("h1", dns=[], ips=["127.0.0.1"], dir=folder / "h1")
        self.ctl = authority.issue("ctl", dns=[], ips=[], dir=folder / "ctl")
        self.h2 = authority.issue("h2", dns=[], ips=[], dir=folder / "h2")
        self.tickets: dict[str, Ticket] = {}
        self.handlers: dict[str, Handler] = {}
        self.server = StreamServer(self.h1, ("127.0.0.1", 0), self.redeem, self.handlers)

    async def redeem(self, ticket_id: str, _peer: str) -> Ticket:
        ticket = self.tickets.pop(ticket_id, None)
        if ticket is None:
            raise UnauthorizedError("no such ticket, or used already")
        return ticket

    def ticket(
        self,
        purpose: Purpose = Purpose.CONSOLE,
        *,
        holder: str = "ctl",
        server: str = "h1",
        life: timedelta = timedelta(minutes=1),
    ) -> str:
        ticket_id = os.urandom(16).hex()
        self.tickets[ticket_id] = Ticket(
            id=ticket_id,
            purpose=purpose,
            resource="vm1",
            holder=holder,
            server=server,
            expires=datetime.now(UTC) + life,
        )
        return ticket_id

    async def open(self, ticket_id: str, tls: TlsFiles | None = None) -> tuple[Reader, Writer]:
        return await open_stream("127.0.0.1", self.server.port, tls or self.ctl, ticket_id, server="h1")


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    it = Ends(tmp_path)
    async with it.server:
        yield it


async def echo(_ticket: Ticket, reader: Reader, writer: Writer) -> None:
    async for data in reader:
        await writer.write(data)


async def whole(reader: Reader) -> bytes:
    return b"".join([data async for data in reader])


async def test_bytes_go_both_ways_and_each_way_ends_by_itself(ends: Ends) -> None:
    seen: list[bytes] = []

    async def count(ticket: Ticket, reader: Reader, writer: Writer) -> None:
        assert ticket.resource == "vm1"
        seen.append(await whole(reader))
        await writer.write(b"got all")

    ends.handlers["console"] = count
    data = os.urandom(3 * FRAME + 17)
    async with stream("127.0.0.1", ends.server.port, ends.ctl, ends.ticket(), server="h1") as (reader, writer):
        await writer.write(data)
        await writer.write_eof()
        await writer.write_eof()
        # Our direction is over, theirs is not.
        assert await whole(reader) == b"got all"
        assert await reader.read() == b""
        with pytest.raises(StreamCut):
            await writer.write(b"more")
    assert seen == [data]


async def test_the_address_in_the_certificate_will_do(ends: Ends) -> None:
    ends.handlers["console"] = echo
    reader, writer = await open_stream("127.0.0.1", ends.server.port, ends.ctl, ends.ticket())
    await writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    await writer.close()
    await writer.close()


async def test_a_ticket_is_good_once(ends: Ends) -> None:
    ends.handlers["console"] = echo
    ticket = ends.ticket()
    _, writer = await ends.open(ticket)
    with pytest.raises(UnauthorizedError, match="used already"):
        await ends.open(ticket)
    await writer.close()


async def test_wrong_tickets(ends: Ends) -> None:
    ends.handlers["console"] = echo
    for ticket, words in (
        ("0" * 32, "no such ticket"),
        (ends.ticket(holder="h2"), "another"),
        (ends.ticket(server="h2"), "another server"),
        (ends.ticket(life=timedelta(seconds=-1)), "expired"),
    ):
        with pytest.raises(UnauthorizedError, match=words):
            await ends.open(ticket)
    with pytest.raises(UnauthorizedError, match="another"):
        await ends.open(ends.ticket(), ends.h2)
    with pytest.raises(InvalidError, match=r"image\.read"):
        await ends.open(ends.ticket(Purpose.IMAGE_READ))


async def test_wrong_certificates(ends: Ends, tmp_path: Path) -> None:
    ends.handlers["console"] = echo
    other = CertificateAuthority.create(tmp_path / "other").issue("ctl", dns=[], ips=[], dir=tmp_path / "forged")
    forged = TlsFiles(ca=ends.ctl.ca, cert=other.cert, key=other.key)
    with pytest.raises(UnavailableError):
        await ends.open(ends.ticket(), forged)
    with pytest.raises(UnauthorizedError, match="another identity"):
        await open_stream("127.0.0.1", ends.server.port, ends.ctl, ends.ticket(), server="h2")
    with pytest.raises(UnauthorizedError, match="another identity"):
        await open_stream("127.0.0.1", ends.server.port, other, ends.ticket())
    # Without a certificate, TLS itself says no.
    bare = ssl.create_default_context(cafile=str(ends.ctl.ca))
    reader, writer = await asyncio.open_connection("127.0.0.1", ends.server.port, ssl=bare, server_hostname="127.0.0.1")
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()


async def test_nobody_listens(ends: Ends) -> None:
    port = ends.server.port
    await ends.server.close()
    with pytest.raises(UnavailableError):
        await open_stream("127.0.0.1", port, ends.ctl, "0" * 32)


async def test_a_handlers_error_reaches_the_client(ends: Ends) -> None:
    async def refuse(_ticket: Ticket, _reader: Reader, writer: Writer) -> None:
        await writer.write(b"some")
        raise ConflictError("the VM has gone", field="vm", value="web1")

    async def fail(_ticket: Ticket, _reader: Reader, _writer: Writer) -> None:
        raise ZeroDivisionError("bad sum")

    ends.handlers["console"] = refuse
    ends.handlers["image.read"] = fail
    reader, writer = await ends.open(ends.ticket())
    assert await reader.readexactly(4) == b"some"
    with pytest.raises(ConflictError, match="web1"):
        await reader.read()
    await writer.close()
    reader, writer = await ends.open(ends.ticket(Purpose.IMAGE_READ))
    with pytest.raises(SeraiError, match="bad sum"):
        await reader.read()
    await writer.close()


async def test_a_cut_is_not_an_end(ends: Ends) -> None:
    outcome: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def listen(_ticket: Ticket, reader: Reader, _writer: Writer) -> None:
        try:
            await whole(reader)
        except StreamCut as error:
            outcome.set_result(error)

    ends.handlers["console"] = listen
    _, writer = await ends.open(ends.ticket())
    await writer.write(b"half")
    await writer.close()
    async with asyncio.timeout(DEADLINE):
        assert isinstance(await outcome, StreamCut)


async def test_a_closed_server_cuts_its_streams(ends: Ends) -> None:
    ends.handlers["console"] = echo
    reader, writer = await ends.open(ends.ticket())
    await ends.server.close()
    with pytest.raises(StreamCut):
        await reader.read()
    await writer.close()


async def test_a_fast_writer_waits_for_a_slow_reader(ends: Ends) -> None:
    go = asyncio.Event()

    async def slow(_ticket: Ticket, reader: Reader, _writer: Writer) -> None:
        await go.wait()
        await reader.drop()

    ends.handlers["console"] = slow
    _, writer = await ends.open(ends.ticket())
    written = 0
    block = bytes(FRAME)

    async def pour() -> None:
        nonlocal written
        while written < 400 * FRAME:
            await writer.write(block)
            written += FRAME

    pouring = asyncio.create_task(pour())
    before = -1
    async with asyncio.timeout(DEADLINE):
        # It stops by itself, far from the end: what is on the way is bounded by buffers.
        while written != before or written == 0:
            before = written
            await asyncio.sleep(0.2)
    assert not pouring.done()
    assert written < 100 * FRAME
    go.set()
    async with asyncio.timeout(DEADLINE):
        await pouring
    await writer.write_eof()
    await writer.close()


def serve_file(path: Path) -> Handler:
    async def handle(_ticket: Ticket, reader: Reader, writer: Writer) -> None:
        await send_file(reader, writer, path)

    return handle


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(os.urandom(700_000) + bytes(2_000_000) + os.urandom(300_000) + bytes(1_000_000))
    return path


async def test_a_file_arrives_whole(ends: Ends, source: Path, tmp_path: Path) -> None:
    ends.handlers["image.read"] = serve_file(source)
    reader, writer = await ends.open(ends.ticket(Purpose.IMAGE_READ))
    seen: list[tuple[int, int]] = []
    target = tmp_path / "target.raw"
    result = await receive_file(
        reader, writer, target, mode=0o640, progress=lambda done, size: seen.append((done, size))
    )
    await writer.close()
    assert target.read_bytes() == source.read_bytes()
    assert result.sha256 == await sha256_file(source) == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (result.size, result.sent) == (4_000_000, 4_000_000)
    assert seen[-1] == (4_000_000, 4_000_000)
    assert seen == sorted(seen)
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.stat().st_blocks * 512 < 4_000_000
    assert not target.with_name("target.raw.part").exists()


async def test_a_cut_file_is_resumed(ends: Ends, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"

    async def cut(_ticket: Ticket, reader: Reader, writer: Writer) -> None:
        def stop(done: int, _size: int) -> None:
            if done > 1_500_000:
                raise StreamCut("pulled")

        await send_file(reader, writer, source, progress=stop)

    ends.handlers["image.read"] = cut
    reader, writer = await ends.open(ends.ticket(Purpose.IMAGE_READ))
    with pytest.raises(UnavailableError, match="pulled"):
        await receive_file(reader, writer, target)
    await writer.close()
    assert not target.exists()
    have = target.with_name("target.raw.part").stat().st_size
    assert have > 1_000_000

    ends.handlers["image.read"] = serve_file(source)
    reader, writer = await ends.open(ends.ticket(Purpose.IMAGE_READ))
    result = await receive_file(reader, writer, target)
    await writer.close()
    assert result.sent == 4_000_000 - have
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("tamper", ["digest", "part"])
async def test_a_wrong_file_is_not_kept(ends: Ends, source: Path, tmp_path: Path, tamper: str) -> None:
    target = tmp_path / "target.raw"
    part = target.with_name("target.raw.part")
    expected = await sha256_file(source)
    if tamper == "part":
        part.write_bytes(b"left from another file")
    else:
        expected = "0" * 64
    ends.handlers["image.read"] = serve_file(source)
    reader, writer = await ends.open(ends.ticket(Purpose.IMAGE_READ))
    with pytest.raises(InvalidError, match="SHA-256"):
        await receive_file(reader, writer, target, sha256=expected)
    await writer.close()
    assert not target.exists()
    assert not part.exists()


async def test_an_upload(ends: Ends, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"

    async def take(_ticket: Ticket, reader: Reader, writer: Writer) -> None:
        result = await receive_file(reader, writer, target)
        await writer.write_message(result.sha256.encode())

    ends.handlers["image.write"] = take
    reader, writer = await ends.open(ends.ticket(Purpose.IMAGE_WRITE))
    sent = await send_file(reader, writer, source)
    assert (await reader.read_message()).decode() == sent.sha256
    await writer.close()
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("hostile", [b"\x7f\xff\xff\xff", b"\x00\x04\x00\x01"])
async def test_frames_that_are_too_large_are_refused(
    ends: Ends, hostile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    _reader, writer = await asyncio.open_connection("127.0.0.1", ends.server.port, ssl=ends.ctl.client_context())
    with caplog.at_level("INFO"):
        writer.write(hostile)
        await until_logged(caplog, lambda text: "more than the protocol allows" in text)
    writer.close()
    await writer.wait_closed()


async def until_logged(caplog: pytest.LogCaptureFixture, condition: Callable[[str], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition(caplog.text):
            await asyncio.sleep(0.01)
