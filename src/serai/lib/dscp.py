"""Which bytes wait: the data channel's are marked "lower effort" (RFC 8622), and links serve all others before them.

The mark is in each packet's header, and so holds all along the way: on the sender's link, on a switch's port to the
receiver, in another network namespace. A link that `netlink.shape` limits has a class for it; a switch that knows the
mark does likewise; any other link takes no notice. The mark needs no privilege, and no rate that somebody would have to
measure and keep right: alone, a stream has the whole link.
"""

from __future__ import annotations

import socket
from asyncio.trsock import TransportSocket

LOWER_EFFORT = 1
"""The code point, six bits. In a header it stands above two bits that belong to ECN."""


def give_way(end: socket.socket | TransportSocket) -> None:
    """Mark all that this socket sends from now on; a listening one passes it on to those that it accepts."""
    if end.family == socket.AF_INET6:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOWER_EFFORT << 2)
    else:
        end.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, LOWER_EFFORT << 2)
