"""The contract of a host's network: taps whose port can be closed, and announcements of a VM's new place.

A tap is not persistent: it goes with the last descriptor of it, and QEMU holds one, so a killed QEMU leaves none.
A closed port neither takes nor delivers a frame and has nothing in the bridge's forwarding table. Errors: HostError,
NotFoundError (no such bridge or tap), InvalidError.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Protocol

from serai.schema.commands.uplink import UplinkTaken
from serai.schema.launch import VnicAttachment


@dataclass
class Tap:
    """A tap on its bridge. `fd` is ours until `close`; QEMU gets a copy."""

    name: str
    fd: int
    closed: bool = field(default=False, compare=False)

    def close(self) -> None:
        """Close our descriptor. If QEMU has none, the tap is gone. Harmless when repeated."""
        if not self.closed:
            self.closed = True
            if self.fd >= 0:
                os.close(self.fd)


class Uplinks(Protocol):
    """Bridges on this host's uplinks, put there without cutting anybody off."""

    async def take(self, uplink: str, bridge: str, within: float) -> UplinkTaken:
        """Put `bridge` on `uplink`, undone after `within` seconds unless confirmed.

        Raises NotFoundError, ConflictError, InvalidError, HostError; then nothing is changed.
        """

    async def confirm(self, token: str) -> None:
        """Keep it. An empty token means the newest. Raises NotFoundError, ConflictError when it is too late."""


class NetworkDriver(Protocol):
    """What every network driver does."""

    async def start(self) -> None:
        """Make ready; before anything else."""

    async def list_bridges(self) -> list[str]:
        """Names of the bridges that are there, sorted."""

    async def create_tap(self, vnic: VnicAttachment, *, open_port: bool) -> Tap:
        """Create the VNIC's tap on its bridge. HostError for a name that is taken: somebody holds that tap."""

    async def open_port(self, tap: str) -> None:
        """Let frames through."""

    async def close_port(self, tap: str) -> None:
        """Let nothing through, and forget what the bridge learned behind it."""

    async def announce(self, vnic: VnicAttachment) -> None:
        """Tell bridges, switches and neighbours where the VNIC's MAC and addresses are now (RARP, gratuitous ARP).

        When it returns, this host's bridge delivers to the tap, whatever it had learned before, and the first frames
        are out; repeats follow within half a second. The port must be open: HostError for a closed one.
        """

    async def close(self) -> None:
        """Give sockets back; taps and bridges stay."""
