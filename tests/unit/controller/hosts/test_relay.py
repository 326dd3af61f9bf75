"""A console as the controller passes it on: what is typed while it is joined again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from serai.controller.hosts import relay
from serai.controller.hosts.relay import QUEUED_MAX, Console
from serai.lib import stream
from serai.schema.ids import HostName, VmId
from serai.schema.vm import Vm, VmSpec, VmState, VmStatus

PIECE = bytes(4096)
TYPED = 64
"""Pieces: four times as much as may wait."""


class Host:
    """One end of a console: it hangs up when it is told to, and keeps what was typed."""

    def __init__(self) -> None:
        self.typed = bytearray()
        self.up = True
        self.gone = asyncio.Event()

    async def read(self, n: int) -> bytes:
        await self.gone.wait()
        return b""

    async def write(self, data: bytes) -> None:
        if not self.up:
            raise stream.StreamCut("hung up")
        self.typed += data

    async def close(self) -> None:
        self.gone.set()

    def hang_up(self) -> None:
        self.up = False
        self.gone.set()


async def find(_: str) -> Vm:
    status = VmStatus(state=VmState.RUNNING, host=HostName("h2"), pid=1)
    return Vm(name="a", id=VmId("0" * 12), generation=1, created=datetime.now(UTC), spec=VmSpec(), status=status)


@pytest.mark.parametrize("noticed", [True, False], ids=["the reader saw the end", "only the writer did"])
async def test_what_is_typed_while_it_is_joined_again_is_bounded(
    monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    monkeypatch.setattr(relay, "RETRY", 0)
    first, second = Host(), Host()
    answers = asyncio.Event()

    async def join(host: str, _: str) -> tuple[stream.Reader, stream.Writer]:
        if host == "h2":
            await answers.wait()
        end = first if host == "h1" else second
        return end, end  # type: ignore[return-value]  # a double of both

    console = Console(VmId("0" * 12), join, find, lambda: None)
    await console.join(HostName("h1"))
    reading = asyncio.create_task(console.read(100))
    accepted = 0

    async def type_all() -> None:
        nonlocal accepted
        for _ in range(TYPED):
            console.write(PIECE)
            await console.drain()
            accepted += 1

    first.up = False
    if noticed:
        first.hang_up()
        await asyncio.sleep(0.05)
    typing = asyncio.create_task(type_all())
    await asyncio.wait({typing}, timeout=0.2)
    assert accepted <= QUEUED_MAX // len(PIECE) + 1
    first.hang_up()
    answers.set()
    await asyncio.wait_for(typing, 10)
    assert len(second.typed) == TYPED * len(PIECE)
    second.gone.set()
    reading.cancel()
    console.close()
