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
from tests.support import observed

from serai.drivers.network.uplink import FOLDER, Phase, UplinkTaker, _change, undo
from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.lib.process import run, spawn
from serai.schema.errors import ConflictError, HostError, InvalidError, NotFoundError


@dataclass
class Ground:
    """A machine with one uplink, and its peer."""

    here: str
    peer: str
    state: Path

    @property
    def file(self) -> Path:
        return self.state / FOLDER / "eth0.json"

    @property
    def taker(self) -> UplinkTaker:
        return UplinkTaker(self.state, namespace.enter_argv(self.here))

    async def seen(self, link: str = "eth0") -> list[str]:
        """Addresses and routes of one link, whole, except that time passes and that a link may come and go."""
        enter = namespace.enter_argv(self.here)
        shown = await run([*enter, "ip", "-json", "address", "show", "dev", link], check=False)
        found = [row for at in json.loads(shown.stdout or b"[]") for row in at["addr_info"] if row["scope"] != "link"]
        for family in ("-4", "-6"):
            routes = json.loads((await run([*enter, "ip", family, "-json", "route", "show", "table", "all"])).stdout)
            found += [
                row
                for row in routes
                if row.get("dev") == link
                and not row["dst"].startswith(("fe80", "ff00"))
                # Of each IPv6 address, which is seen above, the kernel makes a local route in its own time.
                and not (family == "-6" and row.get("type") == "local" and row["protocol"] == "kernel")
            ]
        passing = {"valid_life_time", "preferred_life_time", "expires", "nodad", "flags"}
        return sorted(
            {
                json.dumps({key: value for key, value in row.items() if key not in passing}, sort_keys=True)
                for row in found
            }
        )

    async def ip(self, *lines: str) -> None:
        for line in lines:
            await run([*namespace.enter_argv(self.here), "ip", *line.split()])


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
        ground = Ground(here, peer, tmp_path)
        await ground.ip("route add default via 10.9.0.1 proto 16")
        yield ground
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
        taken = "\n".join(await ground.seen("br-lan"))
        assert '"local": "10.9.0.2"' in taken
        assert '"gateway": "10.9.0.1"' in taken
        assert await ground.seen() == []


async def test_unconfirmed_it_is_undone_exactly(ground: Ground) -> None:
    before = await ground.seen()
    async with Connection(ground) as connection:
        await ground.taker.take("eth0", "br-lan", within=4.0)
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
    taken = await ground.seen("br-lan")
    assert taken
    # What a boot leaves: the link with its address and route, and no bridge.
    boot = ("link del br-lan", "address add 10.9.0.2/24 dev eth0", "route add default via 10.9.0.1 proto 16")
    await ground.ip(*boot)
    await ground.taker.start()
    await ground.taker.start()
    assert await ground.seen("br-lan") == taken


CLOUD = ("address flush dev eth0 scope global", "address add 10.9.0.2/32 dev eth0")
SHAPES = {
    "two addresses of one subnet": (
        "address add 10.9.0.3/24 dev eth0",
        "address add 10.9.0.4/24 dev eth0 label eth0:1",
        "address add 10.6.0.1/24 brd + dev eth0 valid_lft 4000 preferred_lft 3000",
    ),
    "a gateway on the link": (
        *CLOUD,
        "route add 10.9.0.1 dev eth0 scope link proto dhcp",
        "route add default via 10.9.0.1 dev eth0 proto dhcp src 10.9.0.2",
    ),
    "a gateway that is only said to be on the link": (*CLOUD, "route add default via 10.9.0.1 dev eth0 onlink"),
    "routes with attributes, and in other tables": (
        "address flush dev eth0 scope global",
        "address add 10.9.0.2/24 dev eth0 noprefixroute",
        "route add 10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.2 metric 100",
        "route add default via 10.9.0.1 dev eth0 proto dhcp metric 100 mtu 1400",
        "route add default via 10.9.0.1 dev eth0 table 100",
        "route add 10.5.0.0/16 via 10.9.0.1 dev eth0 tos 0x10",
    ),
    "a peer": ("address add 10.7.0.1 peer 10.7.0.2/32 dev eth0", "route add 10.8.0.0/16 via 10.7.0.2 dev eth0"),
    "IPv6": (
        "address add 2001:db8::2/64 dev eth0 nodad",
        "address add 2001:db8:1::2/64 dev eth0 nodad noprefixroute",
        "-6 route add 2001:db8:1::/64 dev eth0 metric 77",
        "-6 route add default via fe80::1 dev eth0 proto ra metric 1024 expires 1800 pref high",
        "-6 route add 2001:db8:2::/48 via 2001:db8::1 dev eth0",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_whatever_it_has_is_moved_and_given_back_whole(ground: Ground, shape: str) -> None:
    await ground.ip(*SHAPES[shape])
    before = await ground.seen()
    taken = await ground.taker.take("eth0", "br-lan", within=3600)
    # A label such as eth0:1 is the one thing that a link of another name cannot have.
    moved = {line.replace("br-lan", "eth0") for line in await ground.seen("br-lan")}
    assert moved == {line.replace('"label": "eth0:1"', '"label": "eth0"') for line in before}
    assert await ground.seen() == []
    await asyncio.to_thread(undo, ground.file, taken.token)
    assert await ground.seen() == before
    assert await ground.seen("br-lan") == []
    take = ground.taker.current()
    assert take is not None
    assert (take.phase, take.problem) == (Phase.UNDONE, "")


async def test_what_cannot_be_moved_whole_is_refused(ground: Ground) -> None:
    await ground.ip("route add 10.8.0.0/16 nexthop via 10.9.0.1 dev eth0 nexthop via 10.9.0.7 dev eth0")
    before = await ground.seen()
    with pytest.raises(ConflictError, match="nexthops") as caught:
        await ground.taker.take("eth0", "br-lan", within=60)
    assert caught.value.info.field == "uplink"
    assert await ground.seen() == before
    assert ground.taker.current() is None


async def test_one_that_fails_midway_is_undone_at_once(ground: Ground) -> None:
    await ground.ip("address add 10.6.0.1/24 dev eth0")
    before = await ground.seen()
    taken = await ground.taker.take("eth0", "br-lan", within=3600)
    await asyncio.to_thread(undo, ground.file, taken.token)
    take = ground.taker.current()
    assert take is not None
    broken = [*take.do[:-1], "route replace 10.77.0.0/16 via 192.0.2.1 dev br-lan"]
    pending = take.model_copy(update={"phase": Phase.PENDING, "do": broken})
    ground.file.write_text(pending.model_dump_json())
    async with Connection(ground) as connection:
        with pytest.raises(HostError, match="is as it was"):
            await asyncio.to_thread(_change, ground.file, pending)
        assert await ground.seen() == before
        await connection.works()
    take = ground.taker.current()
    assert take is not None
    assert take.phase is Phase.UNDONE


async def test_confirmed_or_undone_never_both(ground: Ground) -> None:
    first = await ground.taker.take("eth0", "br-lan", within=3600)
    with pytest.raises(ConflictError, match="not confirmed yet"):
        await ground.taker.take("eth0", "br-two", within=60)
    with pytest.raises(NotFoundError):
        await ground.taker.confirm("of another")
    # The watchdog's time and the word of whoever asked come together: whichever is first holds.
    outcomes = await asyncio.gather(
        asyncio.to_thread(undo, ground.file, first.token), ground.taker.confirm(first.token), return_exceptions=True
    )
    take = ground.taker.current()
    assert take is not None
    confirmed = outcomes[1] is None
    assert take.phase is (Phase.CONFIRMED if confirmed else Phase.UNDONE)
    assert bool(await ground.seen("br-lan")) is confirmed


async def test_two_uplinks_are_both_taken_again(ground: Ground) -> None:
    await ground.ip("link add eth1 type veth peer name far", "link set eth1 up", "address add 10.5.0.1/24 dev eth1")
    for link, bridge in (("eth0", "br-lan"), ("eth1", "br-two")):
        await ground.taker.take(link, bridge, within=60)
        await ground.taker.confirm("")
    await ground.ip("link del br-lan", "link del br-two", "address add 10.9.0.2/24 dev eth0")
    await ground.ip("address add 10.5.0.1/24 dev eth1")
    await ground.taker.start()
    assert '"local": "10.9.0.2"' in "\n".join(await ground.seen("br-lan"))
    assert '"local": "10.5.0.1"' in "\n".join(await ground.seen("br-two"))


async def test_a_start_goes_on_without_an_uplink_that_is_gone(ground: Ground) -> None:
    await ground.taker.take("eth0", "br-lan", within=60)
    await ground.taker.confirm("")
    await ground.ip("link del br-lan", "link del eth0")
    await ground.taker.start()
    assert (await namespace.in_netns(ground.here, observed.links)).keys() == {"lo"}


async def test_a_reboot_in_between_leaves_it_undone(ground: Ground) -> None:
    await ground.taker.take("eth0", "br-lan", within=3600)
    await ground.ip("link del br-lan")
    await ground.taker.start()
    with pytest.raises(ConflictError):
        await ground.taker.confirm("")
    take = ground.taker.current()
    assert take is not None
    assert take.phase is Phase.UNDONE


async def test_one_whose_watchdog_was_lost_is_watched_again(ground: Ground) -> None:
    before = await ground.seen()
    await ground.taker.take("eth0", "br-lan", within=3600)
    take = ground.taker.current()
    assert take is not None
    # As if its watchdog had been killed and the time had gone by: with another token the first one ends by itself.
    ground.file.write_text(take.model_copy(update={"token": "lost", "deadline": time.time() - 1}).model_dump_json())
    await ground.taker.start()
    await until_undone(ground)
    assert await ground.seen() == before


async def test_without_a_watchdog_nothing_changes(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await ground.seen()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HostError, match="did not start"):
        await ground.taker.take("eth0", "br-lan", within=60)
    assert await ground.seen() == before
    take = ground.taker.current()
    assert take is not None
    assert take.phase is Phase.UNDONE


async def test_refusals_change_nothing(ground: Ground) -> None:
    before = await ground.seen()
    with pytest.raises(NotFoundError) as caught:
        await ground.taker.take("eth9", "br-lan", within=60)
    assert caught.value.info.field == "uplink"
    with pytest.raises(ConflictError):
        await ground.taker.take("eth0", "lo", within=60)
    with pytest.raises(InvalidError):
        await ground.taker.take("lo", "br-lan", within=60)
    await ground.ip("link add br0 type bridge", "link add d0 type veth peer name far", "link set d0 master br0")
    with pytest.raises(InvalidError, match="is a bridge itself"):
        await ground.taker.take("br0", "br-lan", within=60)
    with pytest.raises(ConflictError, match="port of br0"):
        await ground.taker.take("d0", "br-lan", within=60)
    assert await ground.seen() == before
    assert ground.taker.current() is None
