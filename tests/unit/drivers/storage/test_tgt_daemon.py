"""Reaching into a daemon's connections; the daemon itself is in the integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from serai.drivers.storage.tgt_daemon import TgtDaemon, _established
from serai.lib.process import Watched


def fill(connection: socket.socket) -> None:
    """Send until it takes nothing more, and until the kernel has passed on to the peer what that one's buffer takes."""
    connection.setblocking(False)
    for size in (1 << 16, 1):
        writable = True
        while writable:
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection.send(bytes(size))
            writable = bool(select.select([], [connection], [], 0.2)[1])


async def test_only_the_connection_that_takes_no_data_is_cut(tmp_path: Path) -> None:
    """This process stands in for the daemon: what it has is reached through its pidfd all the same."""
    address = f"127.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}.{secrets.randbelow(253) + 1}"
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        with (
            socket.create_connection((address, port)) as frozen_peer,
            server.accept()[0] as full,
            socket.create_connection((address, port)) as idle_peer,
            server.accept()[0] as idle,
        ):
            assert _established(ip_address(address), port) == 2
            fill(full)
            daemon = TgtDaemon(tmp_path, ip_address(address), port)
            daemon._process = Watched(os.getpid(), os.pidfd_open(os.getpid()))
            await daemon.cut({"192.0.2.1"})
            with pytest.raises(BlockingIOError):
                full.send(b"x")
            await daemon.cut({frozen_peer.getsockname()[0]})
            with pytest.raises(BrokenPipeError):
                full.send(b"x")
            idle.send(b"x")
            assert await asyncio.to_thread(idle_peer.recv, 1) == b"x"


async def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    daemon = TgtDaemon(tmp_path, ip_address("::1"), 3260)
    assert daemon.portal == "[::1]:3260"
    assert not await daemon.running()
    assert await daemon.ended()
    await daemon.cut({"192.0.2.1"})
    await daemon.stop()
