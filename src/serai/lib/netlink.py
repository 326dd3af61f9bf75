"""The only door to rtnetlink, over pyroute2.

Every call acts in the network namespace of the calling thread. The plain functions are quick (a socket, a few
messages) and blocking; `call` runs one in a worker thread. pyroute2's synchronous calls cannot run in a thread that
has a running event loop, so nothing here but `PortSwitch` may be called from one.

Errors: HostError, saying what was attempted on which link and what the kernel answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from serai.lib.dscp import LOWER_EFFORT
from serai.schema.errors import HostError, NotFoundError

T = TypeVar("T")

SIOCGIFINDEX = 0x8933
AF_BRIDGE = 7
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
RTM_SETLINK, RTM_NEWNEIGH, NLMSG_ERROR = 19, 28, 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE, NLA_F_NESTED = 0x1, 0x4, 0x100, 0x400, 0x8000
IFLA_PROTINFO, IFLA_BRPORT_STATE, IFLA_BRPORT_FLUSH = 12, 1, 24
STATE_DISABLED, STATE_FORWARDING = 0, 3
NDA_LLADDR, NUD_REACHABLE, NTF_MASTER = 2, 0x02, 0x04
ANSWER_TIMEOUT = 2.0
HTB_ROOT, HTB_LINK, HTB_ORDINARY, HTB_LOWER = 0x10000, 0x10001, 0x10010, 0x10020
LOWER_SHARE = 20
"""One part in so many of a link is kept for lower effort when others want all of it, so that nothing stands still."""
LOWER_MATCHES = (
    (ETH_P_IP, f"{LOWER_EFFORT << 2:#04x}/0xfc+1"),
    (ETH_P_IPV6, f"{LOWER_EFFORT << 22:#010x}/0x0fc00000+0"),
)
"""The six bits of the mark in a header: what they must be, under which mask, at which byte."""


@contextlib.contextmanager
def _route(what: str) -> Iterator[Any]:
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise HostError(f"cannot {what}: {os.strerror(error.code)}") from error


async def call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run one of this module's functions in a worker thread (in the process's own namespace)."""
    return await asyncio.to_thread(function, *args, **kwargs)


def _index(route: Any, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise NotFoundError("there is no such link", field="link", value=name)
    return int(found[0])


def exists(name: str) -> bool:
    """Whether there is such a link in this namespace."""
    with _route(f"look for the link {name}") as route:
        return bool(route.link_lookup(ifname=name))


def bridges() -> list[str]:
    """Names of this namespace's bridges."""
    with _route("list bridges") as route:
        return sorted(message.get_attr("IFLA_IFNAME") for message in route.get_links(kind="bridge"))


def add_veth(name: str, peer: str, *, peer_netns: str | None = None) -> None:
    """A veth pair, the peer directly in its namespace (by name; none: this one)."""
    with _route(f"create the veth pair {name}-{peer}") as route:
        end = {"ifname": peer} if peer_netns is None else {"ifname": peer, "net_ns_fd": peer_netns}
        route.link("add", ifname=name, kind="veth", peer=end)


def add_bridge(name: str, *, mac: str | None = None, mtu: int | None = None) -> None:
    """A bridge without STP or delays. A pinned MAC: else it takes its ports' lowest, and peers lose it for seconds."""
    with _route(f"create the bridge {name}") as route:
        options: dict[str, Any] = {"br_stp_state": 0, "br_forward_delay": 0, "br_mcast_snooping": 0}
        if mac is not None:
            options["address"] = mac
        route.link("add", ifname=name, kind="bridge", **options)
        index = _index(route, name)
        if mtu is not None:
            route.link("set", index=index, mtu=mtu)


def add_link(name: str, kind: str, **options: Any) -> None:
    """A link of any other kind, with its own options as pyroute2 names them (`vxlan`: `vxlan_id`)."""
    with _route(f"create the link {name} ({kind})") as route:
        route.link("add", ifname=name, kind=kind, **options)


def set_link_sync(
    name: str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    master: str | None = None,
    mac: str | None = None,
) -> None:
    """Change a link; `master=""` takes it out of its bridge."""
    with _route(f"change the link {name}") as route:
        index = _index(route, name)
        changes: dict[str, Any] = {}
        if mtu is not None:
            changes["mtu"] = mtu
        if mac is not None:
            changes["address"] = mac
        if master is not None:
            changes["master"] = _index(route, master) if master else 0
        if up is not None:
            changes["state"] = "up" if up else "down"
        route.link("set", index=index, **changes)


def add_address(link: str, address: str) -> None:
    """Give a link `10.0.0.1/24`; one that it has already is no error."""
    host, _, prefix = address.partition("/")
    with _route(f"give {link} the address {address}") as route:
        try:
            route.addr("add", index=_index(route, link), address=host, prefixlen=int(prefix or 32))
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise


def shape(link: str, rate: int) -> None:
    """Limit what leaves a link to `rate` bits per second, with HTB.

    Traffic that is marked as lower effort (`lib.dscp`) has a class of its own: all of the link while it is alone, what
    others leave and one part in `LOWER_SHARE` otherwise.
    """
    lower = rate // LOWER_SHARE
    with _route(f"shape {link} to {rate} bit/s") as route:
        index = _index(route, link)
        with contextlib.suppress(NetlinkError):
            route.tc("del", "htb", index, HTB_ROOT)
        route.tc("add", "htb", index, HTB_ROOT, default=HTB_ORDINARY & 0xFFFF)
        # pyroute2 takes bytes per second. A burst of 2 ms at the rate, at least a GSO packet, keeps HTB at its rate.
        burst = max(rate // 8 // 500, 70_000)
        for number, parent, share, priority in (
            (HTB_LINK, HTB_ROOT, rate, 0),
            (HTB_ORDINARY, HTB_LINK, rate - lower, 0),
            (HTB_LOWER, HTB_LINK, lower, 1),
        ):
            values = {"rate": share // 8, "ceil": rate // 8, "burst": burst, "cburst": burst, "prio": priority}
            route.tc("add-class", "htb", index, number, parent=parent, **values)
        for order, (protocol, match) in enumerate(LOWER_MATCHES, 1):
            where = {"parent": HTB_ROOT, "prio": order, "protocol": protocol, "target": HTB_LOWER}
            route.tc("add-filter", "u32", index, **where, keys=[match])


class PortSwitch:
    """Opens and closes bridge ports, and tells bridges what is behind one, by one netlink message each.

    The sockets are kept open: tens of microseconds a message. The port's state is set (`disabled`, `forwarding`), not
    the link: taking a link down waits for an RCU grace period under the kernel's one lock for all links, which was seen
    to cost a move 15 ms. It acts in the network namespace of the thread that made it, and is safe within an event loop.

    Errors: NotFoundError (no such link), HostError.
    """

    def __init__(self) -> None:
        self._ioctl = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._netlink.settimeout(ANSWER_TIMEOUT)
        self._sequence = 0

    def close(self) -> None:
        """Give the sockets back."""
        self._ioctl.close()
        self._netlink.close()

    def set_port(self, name: str, *, forwarding: bool) -> None:
        """Open or close a bridge port; closing forgets what was learned behind it.

        A tap has no operational state of its own and can be opened as soon as it is up. A veth can only be opened
        when the kernel has noted its carrier, up to a second after both ends are up; until then this is a HostError.
        """
        state = struct.pack("=HHB3x", 5, IFLA_BRPORT_STATE, STATE_FORWARDING if forwarding else STATE_DISABLED)
        flush = b"" if forwarding else struct.pack("=HH", 4, IFLA_BRPORT_FLUSH)
        nested = struct.pack("=HH", 4 + len(state + flush), IFLA_PROTINFO | NLA_F_NESTED) + state + flush
        what = f"{'open' if forwarding else 'close'} the port {name}"
        index = self._index(name, what)
        self._ask(RTM_SETLINK, 0, struct.pack("=BxHiII", AF_BRIDGE, 0, index, 0, 0) + nested, what)

    def learn(self, name: str, mac: str) -> None:
        """The port's bridge takes `mac` to be behind this port from now on, as if it had sent a frame: it may age.

        What the bridge had learned elsewhere is replaced. The port must be open.
        """
        what = f"tell the bridge of {name} that {mac} is there"
        index = self._index(name, what)
        attribute = struct.pack("=HH", 10, NDA_LLADDR) + bytes.fromhex(mac.replace(":", "")) + b"\0\0"
        body = struct.pack("=BxxxiHBB", AF_BRIDGE, index, NUD_REACHABLE, NTF_MASTER, 0) + attribute
        self._ask(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, what)

    def _index(self, name: str, what: str) -> int:
        try:
            answer = fcntl.ioctl(self._ioctl, SIOCGIFINDEX, name.encode().ljust(16, b"\0") + bytes(24))
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise NotFoundError("there is no such link", field="link", value=name) from error
            raise HostError(f"cannot {what}: {error.strerror or error}") from error
        return int(struct.unpack_from("=i", answer, 16)[0])

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> None:
        """Send one message and wait for its acknowledgement: rtnetlink(7), linux/if_link.h, linux/neighbour.h."""
        self._sequence += 1
        flags |= NLM_F_REQUEST | NLM_F_ACK
        try:
            self._netlink.send(struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0) + body)
            while True:
                answer = self._netlink.recv(4096)
                _, answered, _, sequence, _ = struct.unpack_from("=IHHII", answer)
                if answered == NLMSG_ERROR and sequence == self._sequence:
                    break
        except OSError as error:
            raise HostError(f"cannot {what}: {error.strerror or error}") from error
        code = -int(struct.unpack_from("=i", answer, 16)[0])
        if code:
            raise HostError(f"cannot {what}: {os.strerror(code)}")
