"""The in-memory twin of the network driver: passes the same contract, moves no frames, remembers announcements."""

from __future__ import annotations

from serai.drivers.network.base import Tap
from serai.schema.errors import HostError, NotFoundError
from serai.schema.launch import VnicAttachment


class FakeNetwork:
    """`ports` maps each tap to whether it is open; `announced` lists MACs in order."""

    def __init__(self, bridges: tuple[str, ...] = ("br-lan",)) -> None:
        self.bridges = set(bridges)
        self.ports: dict[str, bool] = {}
        self.announced: list[str] = []

    async def start(self) -> None:
        return None

    async def list_bridges(self) -> list[str]:
        return sorted(self.bridges)

    async def create_tap(self, vnic: VnicAttachment, *, open_port: bool) -> Tap:
        if vnic.bridge not in self.bridges:
            raise NotFoundError("this host has no such bridge", field="spec.bridge", value=vnic.bridge)
        if vnic.tap in self.ports:
            raise HostError(f"cannot create the tap {vnic.tap}: it is there")
        self.ports[vnic.tap] = open_port
        return _FakeTap(self, vnic.tap)

    async def open_port(self, tap: str) -> None:
        self._known(tap)
        self.ports[tap] = True

    async def close_port(self, tap: str) -> None:
        self._known(tap)
        self.ports[tap] = False

    def _known(self, tap: str) -> None:
        if tap not in self.ports:
            raise NotFoundError("there is no such link", field="link", value=tap)

    async def announce(self, vnic: VnicAttachment) -> None:
        self._known(vnic.tap)
        if not self.ports[vnic.tap]:
            raise HostError(f"cannot announce {vnic.mac}: the port {vnic.tap} is closed")
        self.announced.append(vnic.mac)

    async def close(self) -> None:
        return None


class _FakeTap(Tap):
    """Goes with its descriptor, as a real one does when QEMU has no copy."""

    def __init__(self, network: FakeNetwork, name: str) -> None:
        super().__init__(name, -1)
        self._network = network

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._network.ports.pop(self.name, None)
