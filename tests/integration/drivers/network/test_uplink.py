"""`host network take`: in a namespace, with a peer who keeps a TCP connection open all along."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serai.drivers.network.uplink import Phase, UplinkTaker
from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.lib.process import run, spawn
from serai.schema.errors import ConflictError, NotFoundError


@dataclass
class Ground:
    """A machine with one uplink, and its peer."""

    here: str
    peer: str
    state: Path

    @property
    def taker(self) -> UplinkTaker:
        return UplinkTaker(self.state, namespace.enter_argv(self.here))

    async def seen(self) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
        """Addresses and routes of the machine, as `ip` shows them."""
        enter = namespace.enter_argv(self.here)
        links = json.loads((await run([*enter, "ip", "-json", "-4", "address"])).stdout)
        routes = json.loads((await run([*enter, "ip", "-json", "route"])).stdout)
        addresses = sorted((link["ifname"], row["local"]) for link in links for row in link["addr_info"])
        return list(addresses), sorted([(row["dst"], row.get("gateway", ""), row["dev"]) for row in routes])


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    mark = new_id()[:6]
    here, peer = f"serai-test-{mark}-a", f"serai-test-{mark}-b"
    try:
        await namespace.create(here)
        await namespace.create(peer)
        await namespace.in_netns(here, lambda: netlink.add_veth("eth0", "eth0", peer_netns=peer))
        for name, address in ((here, "10.9.0.2/24"), (peer, "10.9.0.1/24")):

            def furnish(address: str = address) -> None:
                netlink.set_link_sync("eth0", up=True)
                netlink.add_address("eth0", address)

            await namespace.in_netns(name, furnish)
        await namespace.in_netns(here, lambda: netlink.add_route("default", "10.9.0.1"))
        yield Ground(here, peer, tmp_path)
    finally:
        await namespace.delete(here)
        await namespace.delete(peer)


class Connection:
    """A TCP connection between the two that must never notice."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def __aenter__(self) -> Connection:
        def listen() -> socket.socket:
            server = socket.create_server(("10.9.0.2", 5000))
            server.settimeout(5)
            return server

        def connect() -> socket.socket:
            return socket.create_connection(("10.9.0.2", 5000), timeout=5)

        self._server = await namespace.in_netns(self._ground.here, listen)
        self._client = await namespace.in_netns(self._ground.peer, connect)
        self._accepted, _ = self._server.accept()
        self._accepted.settimeout(10)
        self._client.settimeout(10)
        return self

    async def works(self) -> None:
        await asyncio.to_thread(self._client.sendall, b"ping")
        assert await asyncio.to_thread(self._accepted.recv, 4) == b"ping"
        await asyncio.to_thread(self._accepted.sendall, b"pong")
        assert await asyncio.to_thread(self._client.recv, 4) == b"pong"

    async def __aexit__(self, *_: object) -> None:
        for end in (self._client, self._accepted, self._server):
            end.close()


async def until_undone(ground: Ground) -> None:
    deadline = time.monotonic() + 30
    while (take := ground.taker.current()) is None or take.phase is not Phase.UNDONE:
        assert time.monotonic() < deadline, "the watchdog did not undo it"
        await asyncio.sleep(0.05)


async def test_confirmed_it_stays_and_nobody_is_cut_off(ground: Ground) -> None:
    async with Connection(ground) as connection:
        await connection.works()
        await ground.taker.take("eth0", "br-lan", within=60)
        await connection.works()
        await ground.taker.confirm("")
        await ground.taker.confirm("")
        await connection.works()
        addresses, routes = await ground.seen()
        assert ("br-lan", "10.9.0.2") in addresses
        assert ("default", "10.9.0.1", "br-lan") in routes


async def test_unconfirmed_it_is_undone_exactly(ground: Ground) -> None:
    before = await ground.seen()
    async with Connection(ground) as connection:
        await ground.taker.take("eth0", "br-lan", within=1.0)
        await connection.works()
        await until_undone(ground)
        assert await ground.seen() == before
        await connection.works()
    with pytest.raises(ConflictError):
        await ground.taker.confirm("")


async def test_it_is_undone_when_whoever_asked_was_killed(ground: Ground) -> None:
    before = await ground.seen()
    code = (
        "import asyncio, pathlib, sys, time\n"
        "from serai.drivers.network.uplink import UplinkTaker\n"
        "asyncio.run(UplinkTaker(pathlib.Path(sys.argv[1])).take('eth0', 'br-lan', 2.0))\n"
        "print('taken', flush=True)\n"
        "time.sleep(60)\n"
    )
    log = ground.state / "log"
    argv = [*namespace.enter_argv(ground.here), sys.executable, "-c", code, str(ground.state)]
    child = await spawn(argv, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not (log.exists() and "taken" in log.read_text()):
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    finally:
        await child.kill()
    await until_undone(ground)
    assert await ground.seen() == before


async def test_a_reboot_takes_a_confirmed_one_again(ground: Ground) -> None:
    await ground.taker.take("eth0", "br-lan", within=60)
    await ground.taker.confirm("")
    taken = await ground.seen()
    enter = namespace.enter_argv(ground.here)
    # What a boot leaves: the link with its address and route, and no bridge.
    await run([*enter, "ip", "link", "del", "br-lan"])
    await run([*enter, "ip", "address", "add", "10.9.0.2/24", "dev", "eth0"])
    await run([*enter, "ip", "route", "add", "default", "via", "10.9.0.1"])
    await ground.taker.start()
    assert await ground.seen() == taken


async def test_refusals_change_nothing(ground: Ground) -> None:
    before = await ground.seen()
    with pytest.raises(NotFoundError) as caught:
        await ground.taker.take("eth9", "br-lan", within=60)
    assert caught.value.info.field == "uplink"
    with pytest.raises(ConflictError):
        await ground.taker.take("eth0", "lo", within=60)
    assert await ground.seen() == before
