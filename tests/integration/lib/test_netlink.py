"""rtnetlink in a namespace of its own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from serai.drivers.network.links import open_tap
from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.lib.netlink import Address, Route
from serai.lib.process import spawn
from serai.schema.errors import HostError, NotFoundError


@pytest.fixture
async def space() -> AsyncIterator[str]:
    name = f"serai-test-{new_id()[:6]}"
    await namespace.create(name)
    try:
        yield name
    finally:
        await namespace.delete(name)


async def test_addresses_and_routes_come_and_go(space: str) -> None:
    def work() -> None:
        netlink.add_bridge("br0", mac="02:00:00:00:00:01", mtu=1400)
        netlink.set_link_sync("br0", up=True)
        for _ in range(2):
            netlink.add_address("br0", "10.9.0.2/24")
        assert Address("br0", "10.9.0.2/24") in netlink.addresses("br0")
        netlink.add_route("default", "10.9.0.1")
        netlink.add_route("10.8.0.0/16", "10.9.0.3")
        assert set(netlink.routes()) == {
            Route("default", "10.9.0.1", "br0"),
            Route("10.8.0.0/16", "10.9.0.3", "br0"),
            Route("10.9.0.0/24", "", "br0"),
        }
        for _ in range(2):
            netlink.delete_route("10.8.0.0/16")
        assert len(netlink.routes()) == 2
        for _ in range(2):
            netlink.delete_address("br0", "10.9.0.2/24")
        assert Address("br0", "10.9.0.2/24") not in netlink.addresses("br0")
        assert netlink.routes() == []
        found = netlink.links()["br0"]
        assert (found.kind, found.mac, found.mtu, found.up) == ("bridge", "02:00:00:00:00:01", 1400, True)

    await namespace.in_netns(space, work)


async def test_a_rate_is_an_htb(space: str) -> None:
    def work() -> None:
        netlink.add_veth("a", "b")
        for rate in (10**9, 10**8):
            netlink.shape("a", rate)
            assert netlink.qdiscs("a") == ["htb"]
        netlink.delete_link("a")
        netlink.delete_link("a")
        assert "b" not in netlink.links()

    await namespace.in_netns(space, work)


async def test_a_link_moves_to_another_namespace_by_name_or_process(space: str) -> None:
    other = f"{space}-o"
    await namespace.create(other)
    child = await spawn([*namespace.enter_argv(other), "sleep", "60"])
    try:
        deadline = time.monotonic() + 10
        while child.pid not in namespace.processes_in(other):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        await namespace.in_netns(space, lambda: netlink.add_veth("a", "b"))
        await namespace.in_netns(space, lambda: netlink.move_link("a", other))
        await namespace.in_netns(space, lambda: netlink.move_link("b", child.pid))
        assert {"a", "b"} <= set(await namespace.in_netns(other, netlink.links))
        assert set(await namespace.in_netns(space, netlink.links)) == {"lo"}
    finally:
        await child.kill()
        await namespace.delete(other)


async def test_a_bridge_is_told_what_is_behind_a_port(space: str) -> None:
    def work() -> None:
        netlink.add_bridge("br0", mac="02:00:00:00:00:01")
        taps = [open_tap(name) for name in ("a", "b")]
        for name in ("a", "b"):
            netlink.set_link_sync(name, master="br0", up=True)
        netlink.set_link_sync("br0", up=True)
        switch = netlink.PortSwitch()
        try:
            for port in ("a", "b", "b", "a"):
                switch.set_port(port, forwarding=True)
                switch.learn(port, "52:54:00:00:00:01")
                assert netlink.forwarding_table("br0")["52:54:00:00:00:01"] == port
            switch.set_port("a", forwarding=False)
            assert "52:54:00:00:00:01" not in netlink.forwarding_table("br0")
            with pytest.raises(HostError):
                switch.learn("a", "52:54:00:00:00:01")
            with pytest.raises(NotFoundError):
                switch.learn("c", "52:54:00:00:00:01")
            with pytest.raises(NotFoundError):
                switch.set_port("c", forwarding=True)
            with pytest.raises(HostError):
                switch.set_port("lo", forwarding=True)
        finally:
            switch.close()
            for tap in taps:
                os.close(tap)

    await namespace.in_netns(space, work)


async def test_errors_say_what_was_attempted_on_what(space: str) -> None:
    def work() -> None:
        with pytest.raises(NotFoundError) as missing:
            netlink.add_address("nowhere", "10.9.0.2/24")
        assert missing.value.info.value == "nowhere"
        netlink.add_bridge("br0")
        with pytest.raises(HostError, match="cannot create the bridge br0"):
            netlink.add_bridge("br0")
        with pytest.raises(HostError, match="route default through"):
            netlink.add_route("default", "192.0.2.1")

    await namespace.in_netns(space, work)
