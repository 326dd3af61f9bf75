"""The plan of a lab, as data: namespaces, wires, addresses. Nothing here touches the machine.

Every wire is a veth pair between a namespace and a bridge of the fabric. A host has two: eth0 on `lan` (guests and
management; the port of the host's own bridge `br-lan`, which has the address) and eth1 on `san` (storage and migration,
MTU 9000). The controller's namespace is on both, the probe's on `lan` alone. The fabric is a namespace without any way
out, so that labs side by side may use the same addresses and MACs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from serai.schema.errors import InvalidError

LAN = IPv4Network("10.77.0.0/24")
SAN = IPv4Network("10.78.0.0/24")
LAN_MTU = 1500
SAN_MTU = 9000
CTL, PROBE, FIRST_HOST = 2, 3, 10
"""Last bytes of addresses; host N has 10 + N."""
VM_FIRST, VM_LAST = 100, 250
"""Last bytes of the addresses that VMs get."""
MOST_HOSTS = 64
HOST_BRIDGE = "br-lan"
NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")


@dataclass(frozen=True, slots=True)
class Wire:
    """One veth pair. `link` is the end in `node`, `port` the end in the fabric, on its bridge `segment`.

    `rate` in bit/s limits both directions; none: as fast as the machine is.
    """

    node: str
    link: str
    port: str
    segment: str
    mac: str
    mtu: int
    address: str
    bridge: str | None = None
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A bridge of the fabric."""

    name: str
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A lab. Nodes are `h1`…, `ctl`, `probe`; `net` is the fabric."""

    name: str
    hosts: tuple[str, ...]
    segments: tuple[Segment, ...]
    wires: tuple[Wire, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Everything that has a namespace, the fabric first."""
        return ("net", "ctl", "probe", *self.hosts)

    def netns(self, node: str) -> str:
        """The network namespace of a node."""
        return netns(self.name, node)

    def address(self, node: str, segment: str = "lan") -> IPv4Address:
        """A node's address on a segment. Raises KeyError if it is not on it."""
        for wire in self.wires:
            if (wire.node, wire.segment) == (node, segment):
                return IPv4Address(wire.address.partition("/")[0])
        raise KeyError(f"{node} is not on {segment}")


def plan(name: str, hosts: int, link_rate: int | None = None) -> Plan:
    """The plan for so many hosts; `link_rate` in bit/s for the hosts' links. Raises InvalidError."""
    check_name(name)
    if not 1 <= hosts <= MOST_HOSTS:
        raise InvalidError(
            f"a lab has 1 to {MOST_HOSTS} hosts", field="hosts", value=hosts, remedy="Choose a number in that range."
        )
    if link_rate is not None and link_rate < 1_000_000:
        raise InvalidError(
            "too slow for a lab's link", field="link_rate", value=link_rate, remedy="Give 1mbit or more."
        )
    names = tuple(f"h{number}" for number in range(1, hosts + 1))
    wires = [_lan("ctl", CTL), _san("ctl", CTL), _lan("probe", PROBE)]
    for number, host in enumerate(names, FIRST_HOST + 1):
        wires += [_lan(host, number, HOST_BRIDGE, link_rate), _san(host, number, link_rate)]
    segments = (Segment("lan", _mac(0x0F, 1), LAN_MTU), Segment("san", _mac(0x0F, 2), SAN_MTU))
    return Plan(name, names, segments, tuple(wires))


def _lan(node: str, number: int, bridge: str | None = None, rate: int | None = None) -> Wire:
    address = f"{LAN[number]}/{LAN.prefixlen}"
    return Wire(node, "eth0", f"{node}-lan", "lan", _mac(1, number), LAN_MTU, address, bridge, rate)


def _san(node: str, number: int, rate: int | None = None) -> Wire:
    address = f"{SAN[number]}/{SAN.prefixlen}"
    return Wire(node, "eth1", f"{node}-san", "san", _mac(2, number), SAN_MTU, address, None, rate)


def _mac(segment: int, number: int) -> str:
    # 02: locally administered, so it can meet no real card's.
    return f"02:73:76:{segment:02x}:00:{number:02x}"


def netns(lab: str, node: str) -> str:
    """The network namespace of a lab's node."""
    return f"serai-{lab}-{node}"


def netns_pattern(lab: str) -> re.Pattern[str]:
    """Matches the names of the lab's namespaces, and those of no other lab."""
    return re.compile(rf"serai-{re.escape(lab)}-(h\d+|net|ctl|probe)")


def check_name(name: str) -> None:
    """Raises InvalidError unless the name can be a lab's."""
    if not NAME.match(name):
        raise InvalidError(
            "not a lab's name",
            field="name",
            value=name,
            remedy="Use lower-case letters, digits and dashes, 32 at most.",
        )
