"""A way for one TCP connection to a port, of which the test decides how much it takes and when its end is heard of.

A socket's buffers do the same between two hosts, as they like: what is on the way when the other end hangs up may all
have been sent, as far as the sender knows, or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Self

CHUNK = 4096


class Way:
    """Passes on to `target` on 127.0.0.1 what comes to `port`, and back.

    The end of the connection to `target` sets `refused`, and is not passed on before `reset`. What is sent after it is
    read and thrown away with `reads_all`; else no more than ENOUGH is read at all.
    """

    ENOUGH = 64 << 10
    """Bytes: more than a TLS handshake."""

    def __init__(self, target: int, *, reads_all: bool) -> None:
        self._target = target
        self._reads_all = reads_all
        self.refused = asyncio.Event()
        self.read = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.ENOUGH)
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._take, sock=listening, limit=CHUNK)
        self.port: int = listening.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reset()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._server.wait_closed()

    @classmethod
    def takes(cls) -> int:
        """Bytes at most that a sender gets rid of while nothing more is read."""
        most = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text(encoding="ascii").split()[2])
        # The kernel doubles what is asked for.
        return most + 2 * cls.ENOUGH + cls.ENOUGH

    def reset(self) -> None:
        """Hang up at both ends."""
        for writer in self._writers:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, onward]
        self._tasks += [
            asyncio.create_task(self._forth(reader, onward)),
            asyncio.create_task(self._back(there, writer)),
        ]

    async def _forth(self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
        while self._reads_all or self.read < self.ENOUGH:
            data = await reader.read(CHUNK if self._reads_all else min(CHUNK, self.ENOUGH - self.read))
            if not data:
                return
            self.read += len(data)
            if not self.refused.is_set():
                onward.write(data)

    async def _back(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(CHUNK):
                writer.write(data)
        self.refused.set()
