"""The data channel: bytes between two agents, straight from one to the other.

Both ends show a certificate of the installation's CA. The end that connects sends the id of a ticket, which the
controller issued for this purpose, resource and pair of identities; the end that listens redeems it (once, and never
again) before a byte flows, and hands the stream to the handler of the ticket's purpose.

Within TLS, bytes travel in frames: a length of 4 bytes, big-endian, and as many bytes. Length 0 is the end of one
direction (TLS has no half-close that asyncio can use), `FAILURE` announces an `ErrorInfo` in JSON, so that the other
end raises the same error. A connection that ends without either was cut, and reading it says so: no reader ever takes
half of something for all of it. A writer that is faster than its reader waits, and all streams give way to what else
wants the link (`lib.dscp`): an image's copy does not starve disks, guests and migrations.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Self

from serai.lib.bus import decode_error, encode_error
from serai.lib.clock import Clock, SystemClock
from serai.lib.dscp import give_way
from serai.lib.pki import TlsFiles, peer_identity
from serai.lib.redact import hide
from serai.lib.tasks import Tasks
from serai.lib.timeouts import time_limit
from serai.schema.errors import InvalidError, SeraiError, UnauthorizedError, UnavailableError
from serai.schema.ticket import Ticket

log = logging.getLogger(__name__)

FRAME = 256 * 1024
"""Bytes in one frame at most: large enough for speed, small enough to share a link fairly."""
MESSAGE = 64 * 1024
"""Bytes in one message (`write_message`) at most."""
FAILURE = 0xFFFFFFFF
HANDSHAKE = 10.0
"""Seconds for the TLS handshake, and again for the ticket."""
LINGER = 5.0
"""Seconds for which a server waits for the other end to hang up, so that the last frames are not lost in a reset."""

_CUT = (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, TimeoutError)


class StreamCut(UnavailableError):  # noqa: N818 - what happened, in a word
    """The connection ended before the stream did."""


class Reader:
    """The incoming direction of a stream."""

    def __init__(self, raw: asyncio.StreamReader) -> None:
        self._raw = raw
        self._left = 0
        self._ended = False

    async def read(self, count: int = FRAME) -> bytes:
        """Return at most `count` bytes as soon as there are some; b"" at the stream's end.

        Raises StreamCut, or the error by which the other end gave up.
        """
        if self._ended or not await self._frame():
            return b""
        data = await self._guard(self._raw.read(min(count, self._left)))
        if not data:
            raise StreamCut("the stream was cut within a frame")
        self._left -= len(data)
        return data

    async def readexactly(self, count: int) -> bytes:
        """Return exactly `count` bytes; raises StreamCut if the stream ends before."""
        parts = bytearray()
        while len(parts) < count:
            data = await self.read(count - len(parts))
            if not data:
                raise StreamCut(f"the stream ended after {len(parts)} of {count} bytes")
            parts += data
        return bytes(parts)

    async def read_message(self) -> bytes:
        """Return what the other end wrote by `write_message`."""
        size = int.from_bytes(await self.readexactly(4))
        if size > MESSAGE:
            raise InvalidError("a message on a stream is too large", field="size", value=size)
        return await self.readexactly(size)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def drop(self) -> None:
        """Read to the end and forget it; a cut is an end too."""
        with contextlib.suppress(SeraiError):
            while await self.read():
                pass

    async def _frame(self) -> bool:
        """Be within a frame; False at the end."""
        if self._left:
            return True
        size = int.from_bytes(await self._guard(self._raw.readexactly(4)))
        if size == FAILURE:
            length = int.from_bytes(await self._guard(self._raw.readexactly(4)))
            if length > MESSAGE:
                raise StreamCut("the other end sent no valid error")
            self._ended = True
            raise decode_error(await self._guard(self._raw.readexactly(length)))
        if size > FRAME:
            raise StreamCut(f"the other end sent a frame of {size} bytes, more than the protocol allows")
        self._left = size
        self._ended = size == 0
        return not self._ended

    async def _guard(self, reading: Awaitable[bytes]) -> bytes:
        try:
            return await reading
        except _CUT as error:
            raise StreamCut(f"the stream was cut: {str(error) or type(error).__name__}") from error


class Writer:
    """The outgoing direction of a stream; `close` ends the whole connection."""

    def __init__(self, raw: asyncio.StreamWriter) -> None:
        self._raw = raw
        self._lock = asyncio.Lock()
        self._ended = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it; returns when the other end keeps up. Raises StreamCut."""
        view = memoryview(data).cast("B")
        async with self._lock:
            for start in range(0, len(view), FRAME):
                part = view[start : start + FRAME]
                await self._send(len(part).to_bytes(4), part)

    async def write_message(self, data: bytes) -> None:
        """Send bytes that the other end gets as one piece by `read_message`; 64 KiB at most."""
        if len(data) > MESSAGE:
            raise InvalidError("a message on a stream is too large", field="size", value=len(data))
        await self.write(len(data).to_bytes(4) + data)

    async def write_eof(self) -> None:
        """End this direction; the other one goes on. Harmless when repeated."""
        async with self._lock:
            if not self._ended:
                await self._send((0).to_bytes(4))
                self._ended = True

    async def fail(self, error: Exception) -> None:
        """End this direction with an error, which the other end's reader raises; no one left to tell is no error."""
        info = encode_error(error)[:MESSAGE]
        async with self._lock:
            if not self._ended:
                with contextlib.suppress(StreamCut):
                    await self._send(FAILURE.to_bytes(4), len(info).to_bytes(4), info)
                self._ended = True

    async def close(self) -> None:
        """Close the connection, both directions; harmless when repeated."""
        self._ended = True
        self._raw.close()
        try:
            async with time_limit(LINGER):
                await self._raw.wait_closed()
        except TimeoutError:
            # A peer that does not hang up its side must not hold us.
            self._raw.transport.abort()
        except (OSError, *_CUT) as error:
            log.debug("a stream was closed from the other side: %s", error)

    async def _send(self, *parts: bytes | memoryview) -> None:
        if self._ended:
            raise StreamCut("this end of the stream is closed")
        try:
            self._raw.writelines(parts)
            await self._raw.drain()
        except _CUT as error:
            raise StreamCut(f"the stream was cut: {str(error) or type(error).__name__}") from error


Handler = Callable[[Ticket, Reader, Writer], Awaitable[None]]
Redeem = Callable[[str, str], Awaitable[Ticket]]


class StreamServer:
    """The listening end: redeems tickets and hands streams to handlers.

    `redeem(ticket_id, peer_identity)` returns the ticket and makes it void, or raises; what it returns is checked here
    against both identities and the time as well. A handler returns when the stream is over: its outgoing direction is
    ended then. What it raises reaches the other end.
    """

    def __init__(
        self,
        tls: TlsFiles,
        listen: tuple[str, int],
        redeem: Redeem,
        handlers: Mapping[str, Handler],
        *,
        clock: Clock | None = None,
    ) -> None:
        """`listen` is (address, port); port 0 takes a free one."""
        self._tls = tls
        self._listen = listen
        self._redeem = redeem
        self._handlers = handlers
        self._clock = clock or SystemClock()
        self._identity = ""
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None
        self._tasks = Tasks("streams")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def port(self) -> int:
        if self._server is None:
            return self._listen[1]
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen; raises UnavailableError if the address cannot be had."""
        self._identity = self._tls.identity
        self._context = self._tls.server_context()
        host, port = self._listen
        try:
            self._server = await asyncio.start_server(
                self._accept,
                host,
                port,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE,
                limit=FRAME,
            )
        except OSError as error:
            raise UnavailableError(
                f"cannot listen for streams: {error.strerror or error}", field="listen", value=f"{host}:{port}"
            ) from error
        for listener in self._server.sockets:
            give_way(listener)

    def reload(self) -> None:
        """Show a renewed certificate from now on; open streams go on."""
        if self._context is not None:
            self._tls.reload(self._context)

    async def close(self) -> None:
        """Listen no more and cut the streams that are open."""
        if self._server is not None:
            self._server.close()
        await self._tasks.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tasks.closed:
            writer.transport.abort()
            return
        self._tasks.start(self._serve(reader, writer))

    async def _serve(self, raw_reader: asyncio.StreamReader, raw_writer: asyncio.StreamWriter) -> None:
        reader, writer = Reader(raw_reader), Writer(raw_writer)
        try:
            try:
                peer = peer_identity(raw_writer.get_extra_info("ssl_object"))
                await self._handle(reader, writer, peer)
            except StreamCut as error:
                log.info("a stream was cut: %s", error)
                await writer.fail(error)
            except SeraiError as error:
                log.info("a stream was refused or failed: %s", error)
                await writer.fail(error)
            except Exception as error:
                log.error("a stream's handler failed: %s", error, exc_info=error)
                await writer.fail(error)
            with contextlib.suppress(TimeoutError):
                async with time_limit(LINGER):
                    await reader.drop()
        finally:
            await writer.close()

    async def _handle(self, reader: Reader, writer: Writer, peer: str) -> None:
        try:
            async with time_limit(HANDSHAKE):
                ticket_id = (await reader.read_message()).decode(errors="replace")
        except TimeoutError:
            raise UnauthorizedError(f"{peer} connected and showed no ticket") from None
        hide(ticket_id)
        ticket = await self._redeem(ticket_id, peer)
        self._check(ticket, ticket_id, peer)
        handler = self._handlers.get(ticket.purpose)
        if handler is None:
            raise InvalidError("no such stream here", field="purpose", value=ticket.purpose)
        await writer.write_message(b"ok")
        await handler(ticket, reader, writer)
        await writer.write_eof()

    def _check(self, ticket: Ticket, ticket_id: str, peer: str) -> None:
        """Refuse a ticket that is another's, for another server, or too old, whatever the redeemer thought of it."""
        if ticket.id != ticket_id or ticket.holder != peer:
            raise UnauthorizedError("the ticket belongs to another", field="holder", value=peer)
        if ticket.server != self._identity:
            raise UnauthorizedError("the ticket is for another server", field="server", value=self._identity)
        if ticket.expires <= self._clock.now():
            raise UnauthorizedError("the ticket has expired", field="expires", value=ticket.expires.isoformat())


async def open_stream(
    address: str,
    port: int,
    tls: TlsFiles,
    ticket_id: str,
    *,
    server: str | None = None,
    timeout: float = 15,
) -> tuple[Reader, Writer]:
    """Connect, show the ticket, and return the stream once it is accepted; `close` the writer at the end.

    `server` is the identity that must answer (a ticket names it); without it the address must stand in the other
    end's certificate. `timeout` in seconds for all of this. Raises UnavailableError if nobody answers,
    UnauthorizedError if the ticket or a certificate is refused.
    """
    hide(ticket_id)
    try:
        async with time_limit(timeout):
            raw_reader, raw_writer = await asyncio.open_connection(
                address, port, ssl=tls.client_context(), server_hostname=server or address, limit=FRAME
            )
            writer = Writer(raw_writer)
            try:
                give_way(raw_writer.get_extra_info("socket"))
                reader = Reader(raw_reader)
                await writer.write_message(ticket_id.encode())
                await reader.read_message()
            except BaseException:
                await writer.close()
                raise
    except ssl.SSLCertVerificationError as error:
        raise UnauthorizedError(
            f"the server there has another identity: {error.verify_message}", field="address", value=address
        ) from error
    except TimeoutError:
        raise UnavailableError(f"no stream from {address}:{port} within {timeout:g} s") from None
    except OSError as error:
        raise UnavailableError(f"no stream from {address}:{port}: {error.strerror or error}") from error
    return reader, writer


@contextlib.asynccontextmanager
async def stream(
    address: str, port: int, tls: TlsFiles, ticket_id: str, *, server: str | None = None
) -> AsyncIterator[tuple[Reader, Writer]]:
    """`open_stream` as a context manager that closes at the end."""
    reader, writer = await open_stream(address, port, tls, ticket_id, server=server)
    try:
        yield reader, writer
    finally:
        await writer.close()
