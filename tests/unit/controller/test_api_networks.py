"""Networks and VNICs that cannot work are refused before anything is written, and the refusal says what would work."""

from __future__ import annotations

import itertools
from typing import Any

from tests.unit.controller.conftest import World

SPEC = {"bridge": "br-lan", "subnet": "10.99.0.0/24"}


async def refused(world: World, changes: dict[str, Any]) -> dict[str, Any]:
    """The error of a network with these changes; it has a remedy of its own."""
    error = await world.refused("POST", "/v1/networks", {"name": "new", "spec": {**SPEC, **changes}})
    assert not error["remedy"].startswith("Correct"), error
    return error


async def test_bridges_that_cannot_be(bare: World) -> None:
    names = [".", "..", "a/b", "all", "default", "lo", "-br0", "br 0", "sv0123456789-0", "", "x" * 16, "br\x1b"]
    for bridge in names:
        error = await bare.refused("POST", "/v1/networks", {"name": "new", "spec": {**SPEC, "bridge": bridge}})
        assert (error["status"], error["field"], error["value"]) == (422, "spec.bridge", bridge)
        take = await bare.refused("POST", "/v1/hosts/h1/uplink", {"uplink": "eth0", "bridge": bridge})
        assert take["field"] == "bridge"


async def test_subnets_that_cannot_work(bare: World) -> None:
    subnets: list[object] = [
        "127.0.0.0/24", "224.1.0.0/24", "0.1.0.0/24", "169.254.3.0/24", "0.0.0.0/0", "240.0.0.0/24", "96.0.0.0/3",
        "10.99.0.1/24", "10.99.0.0", "10.99.0.0/33", "5", "lots", 5, True, 1.5, None, [], "",
    ]  # fmt: skip
    for subnet in subnets:
        assert (await refused(bare, {"subnet": subnet}))["field"] == "spec.subnet"


async def test_addresses_that_no_machine_can_have(bare: World) -> None:
    addresses: list[object] = ["10.99.0.0", "10.99.0.255", "10.98.0.1", "x", 5]
    for field, address in itertools.product(("gateway", "range_start", "range_end"), addresses):
        error = await refused(bare, {field: address})
        assert (error["field"], error["value"]) == (f"spec.{field}", str(address))


async def test_small_subnets(bare: World) -> None:
    error = await refused(bare, {"subnet": "10.99.0.1/32", "gateway": "10.99.0.1"})
    assert error["field"] == "spec.range_start"
    assert (await refused(bare, {"subnet": "10.99.0.0/30", "gateway": "10.99.0.1", "range_end": "10.99.0.1"}))["field"]
    made = await bare.ok("POST", "/v1/networks", {"name": "p2p", "spec": {**SPEC, "subnet": "10.99.0.0/31"}})
    assert made["status"]["addresses_total"] == 2


async def test_too_many_nameservers(bare: World) -> None:
    assert (await refused(bare, {"nameservers": ["10.99.0.1"] * 9}))["field"] == "spec.nameservers"


async def vnic(world: World, **given: Any) -> dict[str, Any]:
    body = {"name": "v", "spec": {"image": "tiny", "memory": "64M", "vnics": [{"network": "lan", **given}]}}
    error = await world.refused("POST", "/v1/vms", body)
    assert not error["remedy"].startswith("Correct spec.vnics[0].ip"), error
    return error


async def test_addresses_and_macs_that_a_vnic_cannot_have(world: World) -> None:
    addresses = {"10.77.0.1": 409, "10.77.0.0": 422, "10.77.0.255": 422, "10.78.0.5": 422, "x": 422, 7: 422}
    for ip, status in addresses.items():
        error = await vnic(world, ip=ip)
        assert (error["status"], error["field"], error["value"]) == (status, "spec.vnics[0].ip", str(ip))
    macs = ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "fe:54:00:00:00:01", "52:54:00", "x", "\x1b"]
    for mac in macs:
        error = await vnic(world, mac=mac)
        assert (error["field"], error["value"]) == ("spec.vnics[0].mac", mac)


async def test_a_mac_in_use(world: World) -> None:
    await world.create("web1", vnics=[{"network": "lan", "mac": "52:54:00:00:00:01"}])
    assert (await vnic(world, mac="52:54:00:00:00:01"))["status"] == 409


async def test_a_hosts_own_address_is_not_given(world: World) -> None:
    async with world.store.transaction() as tx:
        host = await tx.hosts.find("h1")
        assert host.status.facts is not None
        addresses = {"management": "10.77.0.100", "storage": "fd00::1"}
        facts = host.status.facts.model_copy(update={"addresses": addresses})
        await tx.hosts.update_status(host.id, facts=facts)
    error = await vnic(world, ip="10.77.0.100")
    assert (error["status"], error["message"]) == (409, "host h1 has the address")
    made = await world.create("web1", vnics=[{"network": "lan"}])
    assert made.status.addresses == ["10.77.0.101"]


async def test_networks_on_one_bridge_never_give_an_address_twice(world: World) -> None:
    """Their ranges are apart, but an address that is asked for may be in the other's."""
    spec = {**SPEC, "subnet": "10.77.0.0/24", "range_start": "10.77.0.200", "gateway": "10.77.0.254"}
    await world.ok("POST", "/v1/networks", {"name": "two", "spec": spec})
    await world.create("web1", vnics=[{"network": "two", "ip": "10.77.0.100"}])
    error = await vnic(world, ip="10.77.0.100")
    assert (error["status"], error["message"]) == (409, "a VM on network two has the address")
    assert (await vnic(world, ip="10.77.0.254"))["message"] == "the gateway of network two has the address"
    made = await world.create("web2", vnics=[{"network": "lan"}])
    assert made.status.addresses == ["10.77.0.101"]
    # On another bridge the same address is another one.
    await world.ok("POST", "/v1/networks", {"name": "far", "spec": {"bridge": "br-far", "subnet": "10.77.0.0/24"}})
    await world.create("web3", vnics=[{"network": "far", "ip": "10.77.0.100"}])
