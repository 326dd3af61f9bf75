"""Addresses: what is given, what is refused, and that none is given twice."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.core import ipam
from serai.schema.errors import CapacityError, ConflictError, InvalidError
from serai.schema.network import NetworkSpec


def network(subnet: str = "10.77.0.0/29", **fields: str) -> NetworkSpec:
    return NetworkSpec.model_validate({"bridge": "br", "subnet": subnet, **fields})


def test_the_lowest_free_one_is_given() -> None:
    spec = network(gateway="10.77.0.1")
    assert str(ipam.next_free(spec, set())) == "10.77.0.2"
    assert str(ipam.next_free(spec, {IPv4Address("10.77.0.2")})) == "10.77.0.3"
    assert ipam.total(spec) == 5


def test_a_range_bounds_what_is_given_but_not_what_is_asked_for() -> None:
    spec = network("10.77.0.0/24", range_start="10.77.0.100", range_end="10.77.0.101")
    assert (str(ipam.bounds(spec)[0]), ipam.total(spec)) == ("10.77.0.100", 2)
    used = {IPv4Address("10.77.0.100"), IPv4Address("10.77.0.101")}
    with pytest.raises(CapacityError, match="lan has no free address left"):
        ipam.next_free(spec, used, name="lan")
    assert str(ipam.check(spec, IPv4Address("10.77.0.5"), used)) == "10.77.0.5"


def test_ranges_do_not_reach_network_or_broadcast() -> None:
    spec = network(range_start="10.77.0.0", range_end="10.77.0.7")
    assert [str(one) for one in ipam.bounds(spec)] == ["10.77.0.1", "10.77.0.6"]


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        ("10.77.0.0", InvalidError),
        ("10.77.0.7", InvalidError),
        ("10.78.0.1", InvalidError),
        ("10.77.0.1", ConflictError),
        ("10.77.0.3", ConflictError),
    ],
)
def test_addresses_that_cannot_be_had(wanted: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="ip: " + wanted):
        ipam.check(network(gateway="10.77.0.1"), IPv4Address(wanted), {IPv4Address("10.77.0.3")})


def test_the_smallest_subnets() -> None:
    assert ipam.total(network("10.0.0.4/31")) == 2
    assert str(ipam.next_free(network("10.0.0.4/32"), set())) == "10.0.0.4"


def test_macs_can_be_worked_out_again() -> None:
    assert ipam.mac("aaaaaaaaaaaa", 0) == ipam.mac("aaaaaaaaaaaa", 0)
    several = {ipam.mac("aaaaaaaaaaaa", index, attempt) for index in range(4) for attempt in range(4)}
    assert len(several) == 16
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in several)


@given(st.integers(24, 32), st.sets(st.integers(0, 255)))
def test_none_is_given_twice_until_all_are(prefix: int, taken: set[int]) -> None:
    spec = network(f"10.1.0.0/{prefix}")
    first, last = ipam.bounds(spec)
    used = {address for offset in taken if first <= (address := IPv4Address("10.1.0.0") + offset) <= last}
    while len(used) < ipam.total(spec):
        address = ipam.next_free(spec, used)
        assert address not in used
        assert first <= address <= last
        used.add(address)
    with pytest.raises(CapacityError):
        ipam.next_free(spec, used)
