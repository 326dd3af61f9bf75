"""rtnetlink in a namespace of its own."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

import pytest
from tests.support import observed

from serai.drivers.network.links import open_tap
from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.lib.process import run_sync
from serai.schema.errors import HostError, NotFoundError


@pytest.fixture
async def space() -> AsyncIterator[str]:
    name = f"serai-test-{new_id()[:6]}"
    await namespace.create(name)
    try:
        yield name
    finally:
        await namespace.delete(name)


async def test_a_bridge_and_its_addresses(space: str) -> None:
    def work() -> None:
        netlink.add_bridge("br0", mac="02:00:00:00:00:01", mtu=1400)
        netlink.set_link_sync("br0", up=True)
        for _ in range(2):
            netlink.add_address("br0", "10.9.0.2/24")
        assert observed.addresses("br0") == ["10.9.0.2/24"]
        assert netlink.exists("br0")
        assert not netlink.exists("br1")
        (found,) = json.loads(run_sync(["ip", "-json", "-details", "link", "show", "dev", "br0"]).text)
        assert (found["linkinfo"]["info_kind"], found["address"], found["mtu"]) == ("bridge", "02:00:00:00:00:01", 1400)
        assert "UP" in found["flags"]

    await namespace.in_netns(space, work)


async def test_a_rate_is_an_htb(space: str) -> None:
    def work() -> None:
        netlink.add_veth("a", "b")
        for rate, shown in ((10**9, "1Gbit"), (10**8, "100Mbit")):
            netlink.shape("a", rate)
            assert observed.classes("a")["1:1"].rates == f"rate {shown} ceil {shown}"
            assert observed.classes("a")["1:20"].rates.endswith(f" ceil {shown}")

    await namespace.in_netns(space, work)


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
                assert observed.forwarding_table("br0")["52:54:00:00:00:01"] == port
            switch.set_port("a", forwarding=False)
            assert "52:54:00:00:00:01" not in observed.forwarding_table("br0")
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

    await namespace.in_netns(space, work)
