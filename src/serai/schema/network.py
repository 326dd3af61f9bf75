"""Networks that VNICs join: for now a Linux bridge of the same name on each host, with an address range."""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from serai.schema.ids import HostName, NetworkId
from serai.schema.resource import Create, Frozen, Resource

READY, MISSING = "ready", "missing"
NAMESERVERS_MAX = 8
RESERVED_LINKS = ("all", "default", "lo", "bonding_masters")
"""Names that mean something else under /proc/sys/net or /sys/class/net."""
TAP = re.compile(r"sv[0-9a-f]{10}-[0-9]+")
UNUSABLE = {
    "0.0.0.0/8": "it means no address at all",
    "127.0.0.0/8": "it is every machine's own loopback",
    "169.254.0.0/16": "it is for addresses that machines choose themselves (link-local)",
    "224.0.0.0/4": "it is for multicast",
    "240.0.0.0/4": "it is reserved",
}
"""Where no VM can have an address."""


def _written(value: Any) -> Any:
    """Python reads a bare number as an address (5 is 0.0.0.5); who sends one means something else."""
    with contextlib.suppress(ValueError):
        if isinstance(value, IPv4Address) or (isinstance(value, str) and IPv4Address(value)):
            return value
    raise ValueError(f"{value} is no IPv4 address; write it like 10.77.0.1")


def _prefixed(value: Any) -> Any:
    with contextlib.suppress(ValueError):
        if isinstance(value, IPv4Network) or (isinstance(value, str) and "/" in value and IPv4Network(value)):
            return value
    raise ValueError(f"{value} is no subnet; write it like 10.77.0.0/24, with zeros behind the prefix")


def _usable_subnet(subnet: IPv4Network) -> IPv4Network:
    for text, why in UNUSABLE.items():
        if subnet.overlaps(IPv4Network(text)):
            raise ValueError(f"no VM can have an address in {text}: {why}; use a private subnet like 10.77.0.0/24")
    return subnet


def _usable_link(name: str) -> str:
    if name in (".", "..") or name.startswith("-") or name in RESERVED_LINKS:
        raise ValueError("no link can have this name; choose one like br-lan")
    if TAP.fullmatch(name):
        raise ValueError(f"{name} is how the taps of VMs are named; choose one like br-lan")
    return name


Address = Annotated[IPv4Address, BeforeValidator(_written)]
BridgeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,15}$"), AfterValidator(_usable_link)]


class NetworkSpec(Frozen):
    """`bridge` must exist on each host that runs the network's VMs. `range` is what VNIC addresses are taken from."""

    bridge: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,15}$")
    subnet: IPv4Network
    gateway: Address | None = None
    nameservers: list[Address] = Field(default_factory=list)
    range_start: Address | None = None
    range_end: Address | None = None
    mtu: int = Field(default=1500, ge=576, le=9000)

    @field_validator("gateway", "range_start", "range_end")
    @classmethod
    def _inside(cls, address: IPv4Address | None, info: ValidationInfo) -> IPv4Address | None:
        subnet = info.data.get("subnet")  # absent if it is wrong itself
        if address is not None and subnet is not None and address not in subnet:
            raise ValueError(f"{info.field_name} {address} is not inside subnet {subnet}; give an address in {subnet}")
        first = info.data.get("range_start")
        if info.field_name == "range_end" and address is not None and first is not None and first > address:
            raise ValueError(f"range_start {first} comes after range_end {address}; give the smaller one first")
        return address


class NetworkWish(NetworkSpec):
    """A network as it is asked for: stricter than what is read from the store, where more may have been let in."""

    bridge: BridgeName
    subnet: Annotated[IPv4Network, BeforeValidator(_prefixed), AfterValidator(_usable_subnet)]
    nameservers: list[Address] = Field(default_factory=list, max_length=NAMESERVERS_MAX)

    @field_validator("gateway", "range_start", "range_end")
    @classmethod
    def _a_hosts(cls, address: IPv4Address | None, info: ValidationInfo) -> IPv4Address | None:
        subnet = info.data.get("subnet")
        if address is None or subnet is None or subnet.prefixlen >= 31:
            return address
        for what, other in (("network", subnet.network_address), ("broadcast", subnet.broadcast_address)):
            if address == other:
                first, last = subnet.network_address + 1, subnet.broadcast_address - 1
                raise ValueError(f"{address} is the {what} address of subnet {subnet}; use one of {first} to {last}")
        return address


class NetworkStatus(Frozen):
    """`hosts` have the network's bridge, those `without` do not; one that has not said is in neither. `missing`: no
    host has it, so that no VM can start on this network."""

    state: str = READY
    hosts: list[HostName] = Field(default_factory=list)
    without: list[HostName] = Field(default_factory=list)
    addresses_used: int = 0
    addresses_total: int = 0


class Network(Resource[NetworkSpec, NetworkStatus]):
    kind: str = "network"
    id: NetworkId


class NetworkCreate(Create[NetworkWish]):
    pass


class UplinkTake(Frozen):
    """`serai host network take`: put `bridge` on `uplink`; undone after `confirm_within` seconds unless confirmed."""

    uplink: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,15}$"), AfterValidator(_usable_link)]
    bridge: BridgeName = "br-lan"
    confirm_within: float = Field(default=60.0, ge=1.0, le=3600.0)
