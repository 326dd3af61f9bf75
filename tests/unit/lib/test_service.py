"""A process's frame: a real process for its signals, plain calls for the rest."""

import asyncio
import io
import logging
import signal
import socket
import sys
from pathlib import Path

import pytest

from serai.lib.process import Child, spawn
from serai.lib.service import KeyValueFormatter, notify

BODY = """
import asyncio, sys
from serai.lib import service
from serai.schema.errors import UnavailableError

async def orderly(it):
    it.ready("two VMs")
    await it.stopping.wait()
    print("ended in order", file=sys.stderr)

async def stubborn(it):
    it.ready()
    await asyncio.Event().wait()

async def broken(it):
    raise UnavailableError("no bus", remedy="Start it.")

async def faulty(it):
    raise ZeroDivisionError("bad sum")

sys.exit(service.run("test", globals()[sys.argv[1]]))
"""


async def start(body: str, log: Path) -> Child:
    return await spawn([sys.executable, "-c", BODY, body], stderr=log)


async def said(log: Path, words: str) -> None:
    async with asyncio.timeout(30):
        while words not in (log.read_text() if log.exists() else ""):
            await asyncio.sleep(0.02)


async def test_signals(tmp_path: Path) -> None:
    orderly, stubborn = tmp_path / "orderly", tmp_path / "stubborn"
    first, second = await start("orderly", orderly), await start("stubborn", stubborn)
    await said(orderly, "test is ready: two VMs")
    first.send_signal(signal.SIGTERM)
    assert await first.wait() == 0
    assert "ended in order" in orderly.read_text()
    await said(stubborn, "test is ready")
    second.send_signal(signal.SIGINT)
    await said(stubborn, "test stops")
    second.send_signal(signal.SIGINT)
    assert await second.wait() == 130


async def test_failures(tmp_path: Path) -> None:
    broken, faulty = tmp_path / "broken", tmp_path / "faulty"
    first, second = await start("broken", broken), await start("faulty", faulty)
    assert (await first.wait(), await second.wait()) == (1, 1)
    assert 'msg="test failed: no bus. Start it."' in broken.read_text()
    assert "Traceback" not in broken.read_text()
    assert "ZeroDivisionError: bad sum" in faulty.read_text()


def test_log_lines() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(KeyValueFormatter())
    logger = logging.Logger("serai.test")
    logger.addHandler(handler)
    logger.warning('moved "%s"\nto %s', "web1", "h2", extra={"vm": "abc", "token": "geheim"})
    line = out.getvalue()
    assert line.count("\n") == 1
    assert 'level=warning logger=serai.test msg="moved \\"web1\\"\\nto h2" vm=abc token=***' in line


def test_notify(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = str(tmp_path / "notify.sock")
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": address})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        assert notify("READY=1", {"NOTIFY_SOCKET": address})
        assert listener.recv(100) == b"READY=1"
    assert "cannot tell the init system" in caplog.text


async def test_a_process_in_the_background_gives_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = """
import os
from pathlib import Path
from serai.lib.service import run_in_background
run_in_background(7)
group = Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text().split()[-1] if group.exists() else 7)
"""
    child = await spawn([sys.executable, "-c", code], stdout=out)
    assert await child.wait() == 0
    assert out.read_text().split() == ["7", "7"]
