"""Taps and announcements with real frames: a host with one uplink, and its peer, each in a namespace of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Interface

import pytest
from tests.support import observed
from tests.support.observed import forwarding_table

from serai.drivers.network.base import Tap
from serai.drivers.network.frames import announcement, mac_bytes
from serai.drivers.network.links import REPEATS, BridgeNetwork
from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.schema.launch import VnicAttachment

VM = "52:54:00:00:00:01"
PEER = "02:00:00:00:00:99"
ALL = "ff:ff:ff:ff:ff:ff"
VNIC = VnicAttachment(index=0, mac=VM, bridge="br-lan", tap="sv0123456789-0", ips=[IPv4Interface("10.9.0.100/24")])
ETH_TEST = b"\x88\xb5"
VNET_HEADER = bytes(10)


def frame(target: str, source: str, text: str) -> bytes:
    return mac_bytes(target) + mac_bytes(source) + ETH_TEST + text.encode().ljust(46, b"\0")


@dataclass
class Ground:
    here: str
    network: BridgeNetwork
    wire: socket.socket
    """The peer's end of the uplink."""

    async def table(self) -> dict[str, str]:
        return await namespace.in_netns(self.here, lambda: forwarding_table("br-lan"))


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    mark = new_id()[:6]
    here, peer = f"serai-test-{mark}-a", f"serai-test-{mark}-b"

    def wire() -> socket.socket:
        netlink.set_link_sync("eth0", up=True)
        packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
        packet.bind(("eth0", 0))
        packet.setblocking(False)
        return packet

    def bridge() -> None:
        netlink.add_bridge("br-lan", mac="02:00:00:00:00:02")
        netlink.set_link_sync("br-lan", up=True)
        netlink.set_link_sync("eth0", master="br-lan", up=True)

    network = BridgeNetwork(netns=here)
    try:
        await namespace.create(here)
        await namespace.create(peer)
        await namespace.in_netns(here, lambda: netlink.add_veth("eth0", "eth0", peer_netns=peer))
        await network.start()
        await namespace.in_netns(here, bridge)
        with await namespace.in_netns(peer, wire) as packet:
            yield Ground(here, network, packet)
    finally:
        await network.close()
        await namespace.delete(here)
        await namespace.delete(peer)


async def _texts(read: int | socket.socket, until: str) -> list[str]:
    """Our frames' texts, up to this one."""
    found: list[str] = []
    deadline = time.monotonic() + 10
    while until not in found:
        try:
            data = read.recv(2000) if isinstance(read, socket.socket) else os.read(read, 2000)[len(VNET_HEADER) :]
        except BlockingIOError:
            assert time.monotonic() < deadline, f"{until} never came; {found} did"
            await asyncio.sleep(0.005)
            continue
        if data[12:14] == ETH_TEST:
            found.append(data[14:].rstrip(b"\0").decode())
    return found


def says(tap: Tap, text: str, target: str = ALL) -> None:
    os.write(tap.fd, VNET_HEADER + frame(target, VM, text))


async def test_after_an_announcement_the_bridge_delivers_to_a_vm_that_came_from_elsewhere(ground: Ground) -> None:
    ground.wire.send(frame(ALL, VM, "I am over there"))
    assert (await ground.table())[VM] == "eth0"
    tap = await ground.network.create_tap(VNIC, open_port=False)
    try:
        await ground.network.open_port(VNIC.tap)
        await ground.network.announce(VNIC)
        assert (await ground.table())[VM] == VNIC.tap
        # The guest has not said a word.
        ground.wire.send(frame(VM, PEER, "hello"))
        assert await _texts(tap.fd, "hello") == ["hello"]
    finally:
        tap.close()


async def test_a_closed_port_takes_and_delivers_nothing(ground: Ground) -> None:
    tap = await ground.network.create_tap(VNIC, open_port=True)
    try:
        says(tap, "before")
        await _texts(ground.wire, "before")
        assert (await ground.table())[VM] == VNIC.tap
        await ground.network.close_port(VNIC.tap)
        assert VM not in await ground.table()
        says(tap, "while closed")
        ground.wire.send(frame(VM, PEER, "to a closed port"))
        ground.wire.send(frame(ALL, PEER, "to all"))
        assert VM not in await ground.table()
        await ground.network.open_port(VNIC.tap)
        says(tap, "after")
        ground.wire.send(frame(VM, PEER, "to an open port"))
        assert await _texts(ground.wire, "after") == ["after"]
        assert await _texts(tap.fd, "to an open port") == ["to an open port"]
    finally:
        tap.close()


async def test_an_announcement_reaches_the_wire_at_once_and_again(ground: Ground) -> None:
    tap = await ground.network.create_tap(VNIC, open_port=True)
    wanted = announcement(VM, VNIC.ips)
    seen: Counter[bytes] = Counter()

    def drain() -> None:
        try:
            while True:
                seen[ground.wire.recv(2000)] += 1
        except BlockingIOError:
            return

    try:
        drain()
        seen.clear()
        await ground.network.announce(VNIC)
        drain()
        assert [seen[each] for each in wanted] == [1, 0, 0]  # the switches at once, the neighbours a little later
        deadline = time.monotonic() + 10
        while min(seen[each] for each in wanted) < len(REPEATS):
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.01)
            drain()
    finally:
        tap.close()


async def test_a_bridge_keeps_its_mac_when_taps_come_and_go(ground: Ground) -> None:
    async def mac() -> str:
        return (await namespace.in_netns(ground.here, observed.links))["br-lan"].mac

    before = await mac()
    tap = await ground.network.create_tap(VNIC, open_port=True)
    try:
        assert await mac() == before
        shown = (await namespace.in_netns(ground.here, observed.links))[VNIC.tap]
        assert (shown.mac, shown.mtu, shown.up) == ("fe:54:00:00:00:01", 1500, True)
    finally:
        tap.close()
    assert await mac() == before
