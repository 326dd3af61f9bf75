"""What it means to put a bridge on an uplink: pure functions from what `ip` shows to what `ip` is to do.

`do` and `undo` are lines for `ip -batch`, and each is whole: `undo` gives back addresses and routes with their
attributes, in whatever state an interrupted `do` left things. Their order matters:

- secondary addresses go before the first of their subnet, with which the kernel would take them;
- an address goes before it comes on the other link: as it goes, the kernel drops every route that prefers it as source;
- routes come after all addresses, and those on the link before those through gateways that they make reachable.

A route with an attribute that is not known here is refused before anything changes: half a route might cut people off.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from serai.schema.errors import ConflictError, InvalidError
from serai.schema.resource import Frozen

FOREVER = 0xFFFFFFFF
OPTIONS = {
    "protocol": "proto",
    "metric": "metric",
    "prefsrc": "src",
    "pref": "pref",
    "tos": "tos",
    "expires": "expires",
}
"""Keys of `ip -json route` that are arguments of `ip route add` by another name or the same."""
METRICS = frozenset({"mtu", "advmss", "initcwnd", "initrwnd", "window", "rto_min", "hoplimit", "quickack", "congctl"})
STATES = frozenset({"linkdown", "dead", "pervasive", "offload", "trap", "rt_offload"})
"""Flags that the kernel sets by itself."""
SHOWN = frozenset(
    {"type", "dst", "gateway", "via", "dev", "scope", "table", "flags", "metrics", "error", "age", "users"}
)


class LinkAddress(Frozen):
    """An address on a link. `address` names it (`10.0.0.2/24`); `options` are further arguments of `ip address add`."""

    address: str
    options: str = ""
    label: str = ""
    """An old-style alias such as `eth0:1`, which only a link of that name can have."""
    routes_itself: bool = True
    """The kernel adds the route to its subnet."""


class Route(Frozen):
    """A route of a link: the arguments of `ip route replace`, without the device. `direct`: not through a gateway."""

    words: str
    direct: bool = False


class Uplink(Frozen):
    """What a link is and has."""

    name: str
    mac: str
    mtu: int
    addresses: list[LinkAddress]
    routes: list[Route]

    def lacks(self, other: Uplink) -> list[str]:
        """What `other` has of addresses and routes and this has not, a line each. Lifetimes pass and do not count."""
        own = {held.address for held in self.addresses} | {_lasting(way) for way in self.routes}
        theirs = [held.address for held in other.addresses] + [_lasting(way) for way in other.routes]
        return [each for each in theirs if each not in own]


def _lasting(way: Route) -> str:
    words = way.words.split()
    if "expires" in words:
        at = words.index("expires")
        del words[at : at + 2]
    return " ".join(words)


def plan_take(uplink: Uplink, bridge: str) -> tuple[list[str], list[str]]:
    """(do, undo) as lines for `ip -batch`."""
    name = uplink.name
    # With snooping, and no querier near, multicast (so IPv6 neighbours) might be lost for minutes.
    kind = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
    do = [
        f"link add name {bridge} address {uplink.mac} mtu {uplink.mtu} {kind}",
        f"link set dev {bridge} up",
        f"link set dev {name} master {bridge}",
        *_hand_over(uplink, name, bridge),
    ]
    undo = [f"link set dev {name} nomaster", *_hand_over(uplink, bridge, name), f"link del dev {bridge}"]
    return do, undo


def _hand_over(uplink: Uplink, giver: str, taker: str) -> list[str]:
    lines = [f"address del {held.address} dev {giver}" for held in reversed(uplink.addresses)]
    lines += [f"address add {_add(held, taker, uplink.name)} dev {taker}" for held in uplink.addresses]
    for way in sorted(uplink.routes, key=lambda way: not way.direct):
        lines.append(f"route replace {way.words} dev {taker}")
    return lines


def _add(held: LinkAddress, link: str, uplink: str) -> str:
    label = f"label {held.label}" if held.label and link == uplink else ""
    return " ".join(filter(None, (held.address, held.options, label)))


def parse_uplink(link: dict[str, Any], routes: list[dict[str, Any]], routes6: list[dict[str, Any]]) -> Uplink:
    """From `ip -json -details address show dev X` and `ip -json [-6] route show table all` (of all links).

    Raises ConflictError or InvalidError for what no bridge can be put on.
    """
    name = link["ifname"]
    if "master" in link:
        master = link["master"]
        raise ConflictError(
            f"the link is a port of {master} already",
            field="uplink",
            value=name,
            remedy=f"If {master} is a bridge, use it (serai network create --bridge {master}); else take it instead.",
        )
    if link.get("link_type") != "ether":
        raise InvalidError(
            "only an Ethernet link can be a bridge's uplink",
            field="uplink",
            value=name,
            remedy="Take a link of type 'ether': 'ip link' on the host shows them.",
        )
    if link.get("linkinfo", {}).get("info_kind") == "bridge":
        raise InvalidError(
            "the link is a bridge itself",
            field="uplink",
            value=name,
            remedy="Use it as it is: give its name to 'serai network create'.",
        )
    addresses = [
        _held(row, name) for row in link.get("addr_info", []) if not (_six(row["local"]) and row["scope"] == "link")
    ]
    ways: list[Route] = []
    for row, six in [*((row, False) for row in routes), *((row, True) for row in routes6)]:
        if _leads_through(row, name) and not _comes_by_itself(row, addresses, six=six):
            way = _route(row, six=six, link=name)
            if way not in ways:  # `ip -6` shows some twice
                ways.append(way)
    return Uplink(name=name, mac=link["address"], mtu=link["mtu"], addresses=addresses, routes=ways)


def _leads_through(row: dict[str, Any], link: str) -> bool:
    return link in (row.get("dev"), *(hop.get("dev") for hop in row.get("nexthops", [])))


def _six(address: str) -> bool:
    return ip_address(address).version == 6


def _held(row: dict[str, Any], link: str) -> LinkAddress:
    address = f"{row['local']}/{row['prefixlen']}"
    if "address" in row:
        address = f"{row['local']} peer {row['address']}/{row['prefixlen']}"
    options = []
    for key, option in (("broadcast", "broadcast"), ("metric", "metric")):
        if key in row:
            options += [option, str(row[key])]
    if row["scope"] != "global":
        options += ["scope", row["scope"]]
    if (row.get("valid_life_time", FOREVER), row.get("preferred_life_time", FOREVER)) != (FOREVER, FOREVER):
        options += ["valid_lft", str(row["valid_life_time"]), "preferred_lft", str(row["preferred_life_time"])]
    if row.get("noprefixroute"):
        options.append("noprefixroute")
    if _six(row["local"]):
        # Nobody else took it while it was ours: without this it would not be usable for a second or two.
        options.append("nodad")
    label = row.get("label", link)
    return LinkAddress(
        address=address,
        options=" ".join(options),
        label="" if label == link else label,
        routes_itself=not row.get("noprefixroute"),
    )


def _comes_by_itself(row: dict[str, Any], addresses: list[LinkAddress], *, six: bool) -> bool:
    """Whether the kernel makes this route with an address or a link, and takes it with them."""
    if row.get("table") == "local" or row.get("type", "unicast") != "unicast":
        return True
    if row.get("protocol") != "kernel":
        return False
    if six and row["dst"].startswith("fe80:"):
        return True
    own = [ip_interface(held.address.split(" peer ")[-1]).network for held in addresses if held.routes_itself]
    return row["dst"] != "default" and ip_network(row["dst"]) in own


def _route(row: dict[str, Any], *, six: bool, link: str) -> Route:
    flags = set(row.get("flags", [])) - STATES
    metrics = {key: value for group in row.get("metrics", []) for key, value in group.items()}
    strange = {*(set(row) - SHOWN - set(OPTIONS)), *(set(metrics) - METRICS), *(flags - {"onlink"})}
    if strange:
        raise ConflictError(
            f"its route to {row['dst']} has what cannot be moved to a bridge: {', '.join(sorted(strange))}",
            field="uplink",
            value=link,
            remedy="Configure the bridge in the machine's own network configuration instead.",
        )
    # A batch takes the family from the address: in it, `default` alone would be IPv4's.
    words = ["::/0" if six and row["dst"] == "default" else row["dst"]]
    if "via" in row:
        words += ["via", row["via"]["family"], row["via"]["host"]]
    elif "gateway" in row:
        words += ["via", row["gateway"]]
    for key, option in OPTIONS.items():
        if key in row:
            words += [option, str(row[key])]
    for key in ("scope", "table"):
        if key in row:
            words += [key, str(row[key])]
    for key, value in metrics.items():
        words += [key, str(value)]
    words += sorted(flags)
    return Route(words=" ".join(words), direct="via" not in words)
