"""What a lab's clients do with a tiny guest: its control port, and a TCP connection that must live through a move.

The sockets belong to the probe node's namespace, though this process does not: a socket stays in the namespace it was
made in. Everything is asyncio; errors are UnavailableError (nobody answers) and HostError (the guest said no).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from serai.lab.state import LabFolder
from serai.lib import namespace
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError, UnavailableError

CONTROL_PORT = 9
ECHO_PORT = 7
CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 30.0
"""Seconds for an answer of the guest: longer than any outage of a move that went well."""


async def connect(
    lab: str, address: str, port: int, *, node: str = "probe", timeout: float = CONNECT_TIMEOUT
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP connection from a node of the lab. Raises UnavailableError, NotFoundError for a lab that does not stand."""
    plan = LabFolder.of(lab).load().plan
    connection = await namespace.in_netns(plan.netns(node), socket.socket)
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        async with time_limit(timeout):
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
            return await asyncio.open_connection(sock=connection)
    except (OSError, TimeoutError) as error:
        connection.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "no answer"
        raise UnavailableError(f"cannot connect to {address} port {port}: {reason}") from error
    except BaseException:
        connection.close()
        raise


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever state it is in."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class DiskCount(BaseModel):
    """What the disk writer has done: blocks written, blocks read back and found right, errors of any kind."""

    model_config = ConfigDict(frozen=True)

    on: bool
    written: int
    verified: int
    errors: int
    worst_ms: int


class MemoryCount(BaseModel):
    """What the memory writer has done, in bytes."""

    model_config = ConfigDict(frozen=True)

    on: bool
    written: int


class Guest:
    """A tiny guest's control port; a connection for each request, so that nothing has to live through a move."""

    def __init__(self, lab: str, address: str) -> None:
        self.lab = lab
        self.address = address

    async def request(self, line: str, timeout: float = REQUEST_TIMEOUT) -> dict[str, Any]:
        """One request, one JSON object back. Raises UnavailableError, HostError for a request the guest refused."""
        reader, writer = await connect(self.lab, self.address, CONTROL_PORT)
        try:
            async with time_limit(timeout):
                writer.write(line.encode() + b"\n")
                answer = await reader.readline()
        except (OSError, TimeoutError) as error:
            raise UnavailableError(f"the guest at {self.address} does not answer {line!r}") from error
        finally:
            await close(writer)
        if not answer:
            raise UnavailableError(f"the guest at {self.address} hung up on {line!r}")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result or result.get("ok") is False:
            raise HostError(f"the guest at {self.address} refused {line!r}: {result.get('error', 'it failed')}")
        return result

    async def up(self, timeout: float = 60.0) -> None:
        """Return once it answers. Raises UnavailableError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                await self.request("uptime", timeout=CONNECT_TIMEOUT)
                return
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def boot_id(self) -> str:
        """Another one after each boot."""
        return str((await self.request("boot-id"))["boot_id"])

    async def uptime(self) -> float:
        """Seconds since its kernel began; goes on through a move."""
        return float((await self.request("uptime"))["uptime_ms"]) / 1000

    async def write_memory(self, rate: int, size: int) -> None:
        """Dirty `size` MiB over and over at `rate` MB/s."""
        await self.request(f"mem {rate} {size}")

    async def stop_memory(self) -> None:
        """End the memory writer."""
        await self.request("mem off")

    async def memory(self) -> MemoryCount:
        """How much the memory writer wrote."""
        return MemoryCount.model_validate(await self.request("mem"))

    async def write_disk(self, device: str = "/dev/vda") -> None:
        """Begin to write numbered, checksummed blocks to the device, over whatever is there."""
        await self.request(f"disk start {device}")

    async def disk(self) -> DiskCount:
        """How the disk writer does."""
        return DiskCount.model_validate(await self.request("disk check"))

    async def stop_disk(self) -> DiskCount:
        """End the disk writer and read back all that it wrote last."""
        return DiskCount.model_validate(await self.request("disk stop", timeout=120.0))

    async def power_off(self) -> None:
        """Its own poweroff; there is no answer."""
        await self._last_words("poweroff")

    async def panic(self) -> None:
        """Crash its kernel; there is no answer."""
        await self._last_words("panic")

    async def _last_words(self, line: str) -> None:
        reader, writer = await connect(self.lab, self.address, CONTROL_PORT)
        try:
            writer.write(line.encode() + b"\n")
            with contextlib.suppress(OSError, TimeoutError):
                async with time_limit(2.0):
                    await writer.drain()
                    await reader.read()
        finally:
            # An orderly close would wait for a peer that is gone.
            writer.transport.abort()


@dataclass
class TcpEcho:
    """One TCP connection to the echo port, in use all the time: numbered lines, answered in order.

        async with TcpEcho("lab", "10.77.0.100") as echo:
            …
            echo.check()

    `answered` lines came back right; `worst_ms` is the longest time that one took.
    """

    lab: str
    address: str
    interval: float = 0.02
    answered: int = 0
    worst_ms: float = 0.0
    failure: str | None = None
    _task: asyncio.Task[None] | None = field(default=None, repr=False)
    _writer: asyncio.StreamWriter | None = field(default=None, repr=False)

    async def __aenter__(self) -> Self:
        reader, self._writer = await connect(self.lab, self.address, ECHO_PORT)
        self._task = asyncio.create_task(self._run(reader, self._writer), name=f"tcp echo of {self.address}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._writer is not None:
            self._writer.transport.abort()
            await close(self._writer)

    def check(self) -> None:
        """Raises HostError if the connection broke, or an answer was wrong."""
        if self.failure is not None:
            raise HostError(f"the connection to {self.address} did not last: {self.failure}")

    async def more(self, count: int = 1, timeout: float = REQUEST_TIMEOUT) -> None:
        """Return when `count` more lines were answered from now on: it is alive. Raises HostError, UnavailableError."""
        # One line may be under way already, answered before something happened.
        goal = self.answered + count + 1
        try:
            async with time_limit(timeout):
                while self.answered < goal:
                    self.check()
                    await asyncio.sleep(self.interval / 2)
        except TimeoutError:
            raise UnavailableError(f"the connection to {self.address} stands still") from None

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                line = f"serai {self.answered}\n".encode()
                began = time.monotonic()
                writer.write(line)
                answer = await reader.readline()
                if answer != line:
                    self.failure = f"sent {line!r}, got {answer!r}"
                    return
                self.worst_ms = max(self.worst_ms, (time.monotonic() - began) * 1000)
                self.answered += 1
                await asyncio.sleep(self.interval)
        except OSError as error:
            self.failure = str(error)
