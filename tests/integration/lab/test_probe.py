"""Probes: what they count, and that a silence is seen as long as it was."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time

import pytest
from tests.support.labworld import LabWorld

from bench.workload import TcpEcho
from serai.lab.probe import Prober
from serai.lab.samples import Kind
from serai.lab.state import LabFolder
from serai.lab.up import up
from serai.lib import process
from serai.schema.errors import HostError, InvalidError, UnavailableError

from .conftest import run, serai, start_inside

ECHO = """
import socket, threading
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 7))
tcp = socket.create_server(("0.0.0.0", 7))
def stream():
    while True:
        peer, _ = tcp.accept()
        while data := peer.recv(65536):
            peer.sendall(data)
        peer.close()
threading.Thread(target=stream, daemon=True).start()
while True:
    data, peer = udp.recvfrom(65536)
    udp.sendto(data, peer)
"""
TARGET = "10.77.0.11"


async def lab_with_echo(world: LabWorld) -> tuple[str, process.Child]:
    name = world.name()
    await up(name, 1, bare=True)
    return name, await start_inside(name, "h1", [sys.executable, "-c", ECHO])


async def echoes(name: str) -> None:
    """Wait until the echo server is there; the way to it has been learned then, too."""
    deadline = time.monotonic() + 30
    while True:
        try:
            async with TcpEcho(name, TARGET):
                return
        except UnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def test_every_request_is_counted_and_answered(world: LabWorld) -> None:
    name, _ = await lab_with_echo(world)
    await echoes(name)
    prober = await Prober.start(name, TARGET, interval=0.002)
    await prober.answered()
    report = await prober.stop()
    assert set(report.kinds) == {Kind.ICMP, Kind.UDP}
    assert report.sent == report.received + report.lost
    for one in report.kinds.values():
        assert (one.lost, one.refused) == (0, 0)
        assert one.received == one.sent > 0
        assert one.rtt_ms.median is not None
        assert 0 < one.rtt_ms.median <= one.worst_ms + one.rtt_ms.median
    assert report.own.worst_ms >= report.own.median_ms


async def test_a_silence_is_an_outage_at_least_as_long(world: LabWorld) -> None:
    name, server = await lab_with_echo(world)
    await echoes(name)
    prober = await Prober.start(name, TARGET, interval=0.002)
    await prober.answered()
    server.send_signal(signal.SIGSTOP)
    silent = time.monotonic()
    await asyncio.sleep(0.2)
    lasted = time.monotonic() - silent
    server.send_signal(signal.SIGCONT)
    async with TcpEcho(name, TARGET) as echo:
        await echo.more(2)
    report = await prober.stop()
    udp = report.kinds[Kind.UDP]
    assert udp.worst_ms >= lasted * 1000 - 10
    assert max(udp.outages, key=lambda outage: outage.ms).ended
    # The requests waited in the server's socket: held up, not lost.
    assert udp.lost == 0
    # The host's own kernel went on answering.
    assert report.kinds[Kind.ICMP].lost == 0


async def test_an_address_that_nobody_has_never_answers(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    told = await run("lab", "probe", "10.77.0.99", "--name", name, "--for", "300ms", "--kind", "icmp", "-o", "json")
    report = json.loads(told.text)
    assert report["sent"] > 0
    assert report["lost"] == report["sent"]
    (outage,) = report["outages"]
    assert outage["ended"] is False


async def test_the_command_prints_the_report_and_ends_early_on_ctrl_c(world: LabWorld) -> None:
    name, _ = await lab_with_echo(world)
    await echoes(name)
    told = await run("lab", "probe", TARGET, "--name", name, "--for", "200ms", "--interval", "5ms")
    assert b"icmp: 40 sent, 0 lost" in told.stdout
    out = world.parent / "out"
    child = await process.spawn(serai("lab", "probe", TARGET, "--name", name, "--for", "1h", "-o", "json"), stdout=out)
    probes = LabFolder.of(name).path / "probe"
    deadline = time.monotonic() + 30
    while not list(probes.glob("*/samples.answered")):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert await child.wait() == 0
    assert json.loads(out.read_text())["received"] > 0
    out.unlink()
    assert not list(probes.iterdir())


async def test_a_prober_that_was_killed_is_an_error_not_an_outage(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    async with await Prober.start(name, TARGET, kinds=[Kind.ICMP]) as prober:
        await prober.answered()
        prober._child.send_signal(signal.SIGKILL)
        with pytest.raises(HostError):
            await prober.stop()


@pytest.mark.parametrize(
    ("address", "interval", "field"),
    [("h1", 0.002, "address"), ("::1", 0.002, "address"), (TARGET, 0.0001, "interval")],
)
async def test_a_wrong_wish_is_refused(world: LabWorld, address: str, interval: float, field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        await Prober.start(world.name(), address, interval=interval)
    assert caught.value.info.field == field


async def test_a_connection_that_breaks_is_noticed(world: LabWorld) -> None:
    name, server = await lab_with_echo(world)
    await echoes(name)
    async with TcpEcho(name, TARGET) as echo:
        await echo.more(3)
        echo.check()
        await server.kill()
        with pytest.raises(HostError):
            await echo.more(1)
