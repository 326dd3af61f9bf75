"""The plan of a take: from what `ip` shows to what `ip` does."""

from __future__ import annotations

from typing import Any

import pytest

from serai.drivers.network.uplink_plan import LinkAddress, Route, Uplink, parse_uplink, plan_take
from serai.schema.errors import ConflictError

LINK = {"ifname": "eth0", "address": "02:00:00:00:00:01", "mtu": 9000, "link_type": "ether", "addr_info": []}
LASTING = {"valid_life_time": 0xFFFFFFFF, "preferred_life_time": 0xFFFFFFFF}


def link(*addresses: dict[str, Any]) -> dict[str, Any]:
    return {**LINK, "addr_info": [{"scope": "global", **LASTING, **address} for address in addresses]}


def test_do_and_undo() -> None:
    uplink = Uplink(
        name="eth0",
        mac="02:00:00:00:00:01",
        mtu=1400,
        addresses=[
            LinkAddress(address="10.9.0.2/24", label="eth0:1"),
            LinkAddress(address="10.9.0.3/24", options="metric 5"),
        ],
        routes=[
            Route(words="default via 10.9.0.1"),
            Route(words="::/0 via fe80::1"),
            Route(words="10.9.0.1 scope link", direct=True),
        ],
    )
    do, undo = plan_take(uplink, "br0")
    assert do == [
        "link add name br0 address 02:00:00:00:00:01 mtu 1400 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "link set dev br0 up",
        "link set dev eth0 master br0",
        "address del 10.9.0.3/24 dev eth0",
        "address del 10.9.0.2/24 dev eth0",
        "address add 10.9.0.2/24 dev br0",
        "address add 10.9.0.3/24 metric 5 dev br0",
        "route replace 10.9.0.1 scope link dev br0",
        "route replace default via 10.9.0.1 dev br0",
        "route replace ::/0 via fe80::1 dev br0",
    ]
    assert undo == [
        "link set dev eth0 nomaster",
        "address del 10.9.0.3/24 dev br0",
        "address del 10.9.0.2/24 dev br0",
        "address add 10.9.0.2/24 label eth0:1 dev eth0",
        "address add 10.9.0.3/24 metric 5 dev eth0",
        "route replace 10.9.0.1 scope link dev eth0",
        "route replace default via 10.9.0.1 dev eth0",
        "route replace ::/0 via fe80::1 dev eth0",
        "link del dev br0",
    ]


def test_addresses_keep_what_they_have() -> None:
    found = parse_uplink(
        link(
            {"local": "10.9.0.2", "prefixlen": 24, "broadcast": "10.9.0.255", "label": "eth0", "metric": 7},
            {"local": "169.254.1.1", "prefixlen": 16, "scope": "link", "label": "eth0:a"},
            {"local": "10.7.0.1", "address": "10.7.0.2", "prefixlen": 32, "noprefixroute": True},
            {"local": "2001:db8::2", "prefixlen": 64, "valid_life_time": 60, "preferred_life_time": 0},
            {"local": "fe80::1", "prefixlen": 64, "scope": "link"},
        ),
        [],
        [],
    )
    assert found.mtu == 9000
    assert found.addresses == [
        LinkAddress(address="10.9.0.2/24", options="broadcast 10.9.0.255 metric 7"),
        LinkAddress(address="169.254.1.1/16", options="scope link", label="eth0:a"),
        LinkAddress(address="10.7.0.1 peer 10.7.0.2/32", options="noprefixroute", routes_itself=False),
        LinkAddress(address="2001:db8::2/64", options="valid_lft 60 preferred_lft 0 nodad"),
    ]


def test_routes_that_come_with_an_address_are_left_to_it() -> None:
    kernel = {"dst": "10.9.0.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "prefsrc": "10.9.0.2"}
    plain = link({"local": "10.9.0.2", "prefixlen": 24})
    bare = link({"local": "10.9.0.2", "prefixlen": 24, "noprefixroute": True})
    assert parse_uplink(plain, [kernel], []).routes == []
    assert parse_uplink(bare, [kernel], []).routes == [
        Route(words="10.9.0.0/24 proto kernel src 10.9.0.2 scope link", direct=True)
    ]
    local = {"type": "local", "dst": "10.9.0.2", "dev": "eth0", "table": "local", "protocol": "kernel"}
    own = {"dst": "fe80::/64", "dev": "eth0", "protocol": "kernel", "metric": 256, "pref": "medium"}
    assert parse_uplink(plain, [local], [own]).routes == []


def test_routes_keep_what_they_have_and_others_links_are_left_alone() -> None:
    default = {"dst": "default", "gateway": "10.9.0.1", "dev": "eth0", "flags": ["onlink", "linkdown"], "table": "100"}
    elsewhere = {"dst": "10.0.0.0/8", "gateway": "10.8.0.1", "dev": "eth1"}
    metrics = {
        "dst": "10.1.0.0/16",
        "dev": "eth0",
        "via": {"family": "inet6", "host": "fe80::1"},
        "metrics": [{"mtu": 1400}],
    }
    six = {"dst": "default", "gateway": "fe80::1", "dev": "eth0", "protocol": "ra", "pref": "high", "expires": 99}
    assert parse_uplink(link(), [default, elsewhere, metrics], [six, six]).routes == [
        Route(words="default via 10.9.0.1 table 100 onlink"),
        Route(words="10.1.0.0/16 via inet6 fe80::1 mtu 1400"),
        Route(words="::/0 via fe80::1 proto ra pref high expires 99"),
    ]


@pytest.mark.parametrize(
    "strange",
    [
        {
            "dst": "default",
            "nexthops": [{"gateway": "10.9.0.1", "dev": "eth1"}, {"gateway": "10.9.0.2", "dev": "eth0"}],
        },
        {"dst": "default", "dev": "eth0", "nhid": 7},
        {"dst": "default", "dev": "eth0", "flags": ["surprise"]},
        {"dst": "default", "dev": "eth0", "metrics": [{"surprise": 1}]},
        {"dst": "default", "dev": "eth0", "encap": "mpls"},
    ],
)
def test_a_route_that_is_not_wholly_known_is_refused(strange: dict[str, Any]) -> None:
    with pytest.raises(ConflictError, match="default") as caught:
        parse_uplink(link(), [strange], [])
    assert caught.value.info.value == "eth0"


def test_what_is_missing_is_named_and_passing_time_is_not() -> None:
    ways = [Route(words="::/0 via fe80::1 expires 99 pref high"), Route(words="10.0.0.0/8 via 10.9.0.1")]
    base: dict[str, Any] = {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500}
    before = Uplink(addresses=[LinkAddress(address="10.9.0.2/24", options="valid_lft 60")], routes=ways, **base)
    later = [Route(words="::/0 via fe80::1 expires 42 pref high")]
    after = Uplink(addresses=[LinkAddress(address="10.9.0.2/24", options="valid_lft 3")], routes=later, **base)
    assert after.lacks(before) == ["10.0.0.0/8 via 10.9.0.1"]
    assert before.lacks(after) == []
