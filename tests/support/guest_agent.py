"""A small client of the stock qemu-guest-agent.

The channel is a serial line: what is sent while no agent listens is kept and carried out by one that starts later, and
answers of an earlier asker may still be in it. So each request opens with `guest-sync-delimited` and a number of its
own, and is sent only once that very number has come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor.base import QmpError
from serai.lib.timeouts import time_limit
from serai.schema.errors import UnavailableError

DELIMITER = b"\xff"
LINE_MAX = 16 << 20
"""Bytes; the agent's own limit for file contents and command output."""


async def ask(vm: str, socket: Path, execute: str, arguments: Mapping[str, Any], timeout: float) -> Any:
    """One command of the guest agent's own. Raises UnavailableError (no answer) and QmpError (it refused)."""
    try:
        async with time_limit(timeout):
            return await _ask(socket, execute, arguments)
    except TimeoutError:
        raise UnavailableError(
            f"the guest agent of VM {vm} did not answer {execute} within {timeout:g} s",
            remedy="Install and start qemu-guest-agent in the guest.",
        ) from None
    except (OSError, EOFError) as error:
        raise UnavailableError(f"the guest agent's channel of VM {vm} cannot be used: {error}") from error


async def _ask(socket: Path, execute: str, arguments: Mapping[str, Any]) -> Any:
    reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_MAX)
    try:
        await _synchronise(reader, writer)
        request: dict[str, Any] = {"execute": execute}
        if arguments:
            request["arguments"] = dict(arguments)
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        reply = await _line(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if "error" in reply:
        raise QmpError(execute, str(reply["error"].get("class")), str(reply["error"].get("desc")))
    return reply.get("return")


async def _synchronise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    number = secrets.randbelow(1 << 31)
    sync = json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": number}}).encode()
    # The delimiter first makes the agent's parser drop whatever half of a request it holds.
    writer.write(DELIMITER + sync + b"\n")
    await writer.drain()
    while True:
        await reader.readuntil(DELIMITER)
        if (await _line(reader)).get("return") == number:
            return


async def _line(reader: asyncio.StreamReader) -> dict[str, Any]:
    while True:
        line = await reader.readuntil(b"\n")
        # A parser error of an earlier asker's rest may come before the answer.
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
