"""Linux bridges and taps.

`open_port`, `close_port` and `announce` are in a migration's blackout: they use two sockets that are kept open, and run
in the caller's thread, tens of microseconds each. Announcements go out of the bridge itself, with the VNIC's MAC as the
source: from there they reach the uplink and every switch behind it.

The bridge's own table does not learn from what the bridge itself sends. The driver adds the MAC to it before the first
frame goes out: while the VM was elsewhere, the bridge learned the MAC behind the uplink, and it drops what it would
have to send back where it came from, so that nothing would reach the VM until it had sent something by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from serai.drivers.network.base import Tap
from serai.drivers.network.frames import announcement
from serai.lib import namespace, netlink
from serai.schema.errors import HostError, InvalidError, NotFoundError
from serai.schema.launch import VnicAttachment

T = TypeVar("T")

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
REPEATS = (0.2, 0.3, 0.5)
"""Seconds between the repeats of an announcement: one lost frame must not cost a neighbour's cache lifetime.

At once goes the RARP alone, which is all that the switches need: every guest on the segment has to look at a broadcast,
and each look costs them, the one that has just moved first of all, a part of a millisecond or more when emulated.
"""


class BridgeNetwork:
    """The network driver for Linux bridges, in the process's own network namespace or in a named one."""

    def __init__(self, netns: str | None = None) -> None:
        self.netns = netns
        self._switch: netlink.PortSwitch | None = None
        self._packet: socket.socket | None = None
        self._repeats: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the two sockets of the quick path, in the driver's namespace."""
        self._switch = await self._call(netlink.PortSwitch)
        self._packet = await self._call(_packet_socket)

    async def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        if self.netns is not None:
            return await namespace.in_netns(self.netns, lambda: function(*args, **kwargs))
        return await asyncio.to_thread(function, *args, **kwargs)

    async def list_bridges(self) -> list[str]:
        return await self._call(netlink.bridges)

    async def create_tap(self, vnic: VnicAttachment, *, open_port: bool) -> Tap:
        if not await self._call(netlink.exists, vnic.bridge):
            raise NotFoundError(
                "this host has no such bridge",
                field="spec.bridge",
                value=vnic.bridge,
                remedy="Create it, for example with 'serai host network take UPLINK'.",
            )
        tap = Tap(vnic.tap, await self._call(open_tap, vnic.tap))
        try:
            mac = "fe:" + vnic.mac.split(":", 1)[1]  # higher than any real one: no bridge takes it for its own
            await self._call(netlink.set_link_sync, vnic.tap, mac=mac, mtu=vnic.mtu, master=vnic.bridge, up=True)
            if not open_port:
                await self.close_port(vnic.tap)
        except BaseException:
            tap.close()
            raise
        return tap

    async def open_port(self, tap: str) -> None:
        self._ready(self._switch).set_port(tap, forwarding=True)

    async def close_port(self, tap: str) -> None:
        self._ready(self._switch).set_port(tap, forwarding=False)

    def _ready(self, part: T | None) -> T:
        if part is None:
            raise RuntimeError("the network driver was not started")
        return part

    async def announce(self, vnic: VnicAttachment) -> None:
        frames = announcement(vnic.mac, vnic.ips)
        self._ready(self._switch).learn(vnic.tap, vnic.mac)
        self._send(vnic.bridge, frames[:1])
        task = asyncio.create_task(self._repeat(vnic.bridge, frames), name=f"announce-{vnic.mac}")
        self._repeats.add(task)
        task.add_done_callback(self._repeats.discard)

    def _send(self, bridge: str, frames: list[bytes]) -> None:
        packet = self._ready(self._packet)
        try:
            for frame in frames:
                packet.sendto(frame, (bridge, 0))
        except OSError as error:
            raise HostError(f"cannot announce on {bridge}: {error.strerror}") from error

    async def _repeat(self, bridge: str, frames: list[bytes]) -> None:
        for pause in REPEATS:
            await asyncio.sleep(pause)
            with contextlib.suppress(HostError):  # the first went out; a bridge that went away since needs none
                self._send(bridge, frames)

    async def close(self) -> None:
        for task in list(self._repeats):
            task.cancel()
        if self._repeats:
            await asyncio.wait(self._repeats)
        if self._packet is not None:
            self._packet.close()
        if self._switch is not None:
            self._switch.close()


def _packet_socket() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)


def open_tap(name: str) -> int:
    """A new tap, with virtio's headers on its frames, as a descriptor; it goes with the last copy of that."""
    if len(name) > 15:
        raise InvalidError("a link's name has 15 characters at most", field="tap", value=name)
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"cannot open /dev/net/tun: {error.strerror}", remedy="Load the kernel's tun module, and run as root."
        ) from error
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
    request = struct.pack("16sH22x", name.encode(), flags)
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError as error:
        os.close(fd)
        raise HostError(f"cannot create the tap {name}: {error.strerror}") from error
    return fd
