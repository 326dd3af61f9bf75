"""The network contract: the bridge driver in a namespace of its own, and the fake."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from ipaddress import IPv4Interface

import pytest
from tests.support import observed

from serai.drivers.network.base import NetworkDriver
from serai.drivers.network.fake import FakeNetwork
from serai.drivers.network.links import BridgeNetwork
from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.schema.errors import HostError, NotFoundError, SeraiError
from serai.schema.launch import VnicAttachment

VNIC = VnicAttachment(
    index=0, mac="52:54:00:00:00:01", bridge="br-lan", tap="sv0123456789-0", ips=[IPv4Interface("10.9.0.100/24")]
)


@pytest.fixture(params=["fake", "real"])
async def network(request: pytest.FixtureRequest) -> AsyncIterator[NetworkDriver]:
    if request.param == "fake":
        yield FakeNetwork(bridges=())
        return
    name = f"serai-test-{new_id()[:6]}"
    await namespace.create(name)
    try:
        driver = BridgeNetwork(netns=name)
        await driver.start()
        try:
            yield driver
        finally:
            await driver.close()
    finally:
        await namespace.delete(name)


async def add_bridge(network: NetworkDriver, name: str = "br-lan") -> None:
    """As an operator does."""
    if isinstance(network, FakeNetwork):
        network.bridges.add(name)
        return
    assert isinstance(network, BridgeNetwork)
    assert network.netns is not None

    def work() -> None:
        netlink.add_bridge(name)
        netlink.set_link_sync(name, up=True)

    await namespace.in_netns(network.netns, work)


async def test_a_tap_lives_as_long_as_its_descriptor(network: NetworkDriver) -> None:
    await add_bridge(network)
    tap = await network.create_tap(VNIC, open_port=False)
    assert await _taps(network) == [VNIC.tap]
    tap.close()
    tap.close()
    assert await _taps(network) == []


async def test_bridges_are_listed_and_nothing_else(network: NetworkDriver) -> None:
    assert await network.list_bridges() == []
    await add_bridge(network)
    await add_bridge(network, "br-dmz")
    tap = await network.create_tap(VNIC, open_port=True)
    try:
        assert await network.list_bridges() == ["br-dmz", "br-lan"]
    finally:
        tap.close()


async def test_a_port_opens_and_closes(network: NetworkDriver) -> None:
    await add_bridge(network)
    tap = await network.create_tap(VNIC, open_port=False)
    try:
        assert not await _is_open(network, VNIC.tap)
        await network.open_port(VNIC.tap)
        assert await _is_open(network, VNIC.tap)
        await network.announce(VNIC)
        await network.announce(VNIC)
        await network.close_port(VNIC.tap)
        assert not await _is_open(network, VNIC.tap)
        with pytest.raises(HostError):
            await network.announce(VNIC)
    finally:
        tap.close()


async def test_a_tap_that_is_gone_is_named(network: NetworkDriver) -> None:
    await add_bridge(network)
    tap = await network.create_tap(VNIC, open_port=True)
    assert await _is_open(network, VNIC.tap)
    tap.close()
    for action in (network.open_port(VNIC.tap), network.close_port(VNIC.tap), network.announce(VNIC)):
        with pytest.raises(NotFoundError) as caught:
            await action
        assert caught.value.info.value == VNIC.tap


async def _taps(network: NetworkDriver) -> list[str]:
    if isinstance(network, FakeNetwork):
        return sorted(network.ports)
    assert isinstance(network, BridgeNetwork)
    found = await namespace.in_netns(str(network.netns), observed.links)
    return sorted(link.name for link in found.values() if link.kind == "tun")


async def _is_open(network: NetworkDriver, tap: str) -> bool:
    if isinstance(network, FakeNetwork):
        return network.ports[tap]
    assert isinstance(network, BridgeNetwork)
    shown = await run([*namespace.enter_argv(network.netns), "ip", "-d", "-json", "link", "show", "dev", tap])
    (link,) = json.loads(shown.stdout)
    return bool(link["linkinfo"]["info_slave_data"]["state"] == "forwarding")


async def test_a_bridge_that_is_missing_is_named(network: NetworkDriver) -> None:
    with pytest.raises(NotFoundError) as caught:
        await network.create_tap(VNIC, open_port=True)
    assert caught.value.info.value == "br-lan"
    assert await _taps(network) == []


async def test_a_tap_that_is_taken_is_refused(network: NetworkDriver) -> None:
    await add_bridge(network)
    tap = await network.create_tap(VNIC, open_port=True)
    try:
        with pytest.raises(SeraiError):
            await network.create_tap(VNIC, open_port=True)
    finally:
        tap.close()
