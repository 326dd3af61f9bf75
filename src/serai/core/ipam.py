"""Addresses: the next free one of a network, and MACs that can be derived again.

The lowest free address is taken, from `range_start` to `range_end` if the network has a range, else from the whole
subnet. The network's own, the broadcast and the gateway's address are never given; subnets of one or two addresses
(/32, /31) have neither network nor broadcast address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from ipaddress import IPv4Address

from serai.schema.errors import CapacityError, ConflictError, InvalidError
from serai.schema.network import Network, NetworkSpec

ZERO = "00:00:00:00:00:00"
NO_MAC = "it means no address at all"
TAP_BYTE = 0xFE
TAPS = "addresses with fe: are those of the hosts' taps, and the VNIC's own tap might have this one"


def bounds(network: NetworkSpec) -> tuple[IPv4Address, IPv4Address]:
    """First and last address that VNICs get automatically."""
    first, last = _usable(network)
    return max(network.range_start or first, first), min(network.range_end or last, last)


def total(network: NetworkSpec) -> int:
    """How many addresses there are to give."""
    first, last = bounds(network)
    count = max(int(last) - int(first) + 1, 0)
    inside = network.gateway is not None and first <= network.gateway <= last
    return count - 1 if inside and count else count


def next_free(
    network: NetworkSpec, used: Collection[IPv4Address], *, name: str = "", field: str = "spec.vnics"
) -> IPv4Address:
    """The lowest free address. Raises CapacityError when none is left."""
    taken = set(used) | ({network.gateway} if network.gateway is not None else set())
    first, last = bounds(network)
    address = first
    while address <= last:
        if address not in taken:
            return address
        address += 1
    raise CapacityError(
        f"network {name} has no free address left ({total(network)} in all)".replace("  ", " "),
        field=field,
        value=name or str(network.subnet),
        remedy="Delete a VM, or make a network with a larger range.",
    )


def check(
    network: NetworkSpec, wanted: IPv4Address, used: Collection[IPv4Address], *, field: str = "ip"
) -> IPv4Address:
    """An address that was asked for, if it can be had: in the subnet, not necessarily in the range.

    Raises InvalidError, ConflictError.
    """
    first, last = _usable(network)
    if not first <= wanted <= last:
        raise InvalidError(
            f"the address is not one for hosts of subnet {network.subnet}",
            field=field,
            value=wanted,
            remedy=f"Choose one from {first} to {last}, or none: a free one is chosen then.",
        )
    if wanted == network.gateway:
        raise ConflictError(
            "the address is the network's gateway", field=field, value=wanted, remedy="Choose another, or none."
        )
    if wanted in used:
        raise ConflictError("the address is taken", field=field, value=wanted, remedy="Choose another, or none.")
    return wanted


def check_apart(network: NetworkSpec, other: Network, *, field: str) -> None:
    """Raises ConflictError if another network on the same wire gives some of the addresses: each is given once.

    Disjoint ranges of one subnet are fine.
    """
    mine, theirs = bounds(network), bounds(other.spec)
    if network.subnet.overlaps(other.spec.subnet) and mine[0] <= theirs[1] and theirs[0] <= mine[1]:
        raise ConflictError(
            f"network {other.name} gives addresses {theirs[0]} to {theirs[1]} on bridge {other.spec.bridge} already",
            field=field,
            value=mine[0],
            remedy="Choose a range that does not overlap, or another bridge.",
        )


def check_mac(wanted: str, field: str) -> None:
    """Raises InvalidError for a MAC that no VNIC can have."""
    first = int(wanted[:2], 16)
    bad = "a multicast address" if first & 1 else NO_MAC if wanted == ZERO else TAPS if first == TAP_BYTE else ""
    if bad:
        raise InvalidError(bad, field=field, value=wanted, remedy="Choose 52:54:00:…, or none.")


def mac(vm_id: str, index: int, attempt: int = 0) -> str:
    """`52:54:00:xx:xx:xx` from the VM's id and the VNIC's index; `attempt` for another one, should it be taken.

    52:54:00 is the range that QEMU guests use by custom; it is locally administered and not multicast.
    """
    tail = hashlib.sha256(f"{vm_id}/{index}/{attempt}".encode()).digest()[:3]
    return "52:54:00:" + ":".join(f"{octet:02x}" for octet in tail)


def _usable(network: NetworkSpec) -> tuple[IPv4Address, IPv4Address]:
    subnet = network.subnet
    if subnet.prefixlen >= 31:
        return subnet.network_address, subnet.broadcast_address
    return subnet.network_address + 1, subnet.broadcast_address - 1
