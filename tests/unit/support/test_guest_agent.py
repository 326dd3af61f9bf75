"""The guest agent's client, against a line that has rests of earlier askers in it."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support import guest_agent

from serai.drivers.hypervisor.base import QmpError
from serai.schema.errors import UnavailableError

Answer = Callable[[dict[str, Any]], Awaitable[bytes]]


@asynccontextmanager
async def agent(answer: Answer) -> AsyncIterator[Path]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(await answer(json.loads(line.lstrip(b"\xff"))))
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qga.sock"
        server = await asyncio.start_unix_server(serve, str(path))
        async with server:
            yield path


def says(value: object) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


async def ordinary(request: dict[str, Any]) -> bytes:
    match request["execute"]:
        case "guest-sync-delimited":
            # An earlier asker's number and an answer that nobody fetched come first.
            return says({"old": 1}) + b"\xff" + says(-1) + b"{nonsense\n" + b"\xff" + says(request["arguments"]["id"])
        case "guest-echo":
            return says(request["arguments"])
        case _:
            return b'{"error":{"class":"CommandNotFound","desc":"no such command"}}\n'


async def test_answers() -> None:
    async with agent(ordinary) as path:
        assert await guest_agent.ask("vm", path, "guest-echo", {"a": [1]}, 10) == {"a": [1]}


async def test_refusal() -> None:
    async with agent(ordinary) as path:
        with pytest.raises(QmpError) as caught:
            await guest_agent.ask("vm", path, "guest-nothing", {}, 10)
    assert caught.value.error_class == "CommandNotFound"


async def test_silence_keeps_the_command_to_itself() -> None:
    asked: list[str] = []

    async def silent(request: dict[str, Any]) -> bytes:
        asked.append(request["execute"])
        return b""

    async with agent(silent) as path:
        with pytest.raises(UnavailableError):
            await guest_agent.ask("vm", path, "guest-shutdown", {}, 0.05)
    assert "guest-shutdown" not in asked


async def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await guest_agent.ask("vm", tmp_path / "none", "guest-ping", {}, 1)
