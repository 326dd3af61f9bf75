"""What QEMU does on its control socket only now and then, played by a server of our own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from serai.drivers.hypervisor.base import MachineEvent
from serai.drivers.hypervisor.qmp import Qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}, "capabilities": ["oob"]}}


@pytest.mark.parametrize("again", ["before the command", "after the negotiation"])
async def test_a_second_greeting_is_no_answer(tmp_path: Path, again: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(said: object) -> None:
            writer.write(json.dumps(said).encode() + b"\r\n")

        say(GREETING)
        if again == "before the command":
            say(GREETING)
        asked = json.loads(await reader.read(4096))
        say({"return": {}, "id": asked.get("id")} if "id" in asked else {"return": {}})
        if again == "after the negotiation":
            say(GREETING)
        say({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}})
        asked = json.loads(await reader.read(4096))
        say({"return": {"status": "paused"}, "id": asked["id"]})
        await reader.read()
        writer.close()

    events: list[MachineEvent] = []
    path = tmp_path / "qmp.sock"
    async with await asyncio.start_unix_server(serve, path):
        qmp = Qmp("v", path, events.append)
        await qmp.connect()
        assert await qmp.execute("query-status") == {"status": "paused"}
        await qmp.close()
    assert [event.name for event in events] == ["STOP"]
