"""Where this host's QEMUs listen for a move."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import groupby

from serai.drivers.hypervisor.base import Machine, MigrationSetup, QmpError
from serai.schema.errors import HostError

FIRST, LAST = 49152, 49215


class MigrationPorts:
    """Goes round the range, so that the source of an old offer does not meet the QEMU of a new one."""

    def __init__(self) -> None:
        self._next = FIRST

    async def listen(self, machine: Machine, setup: MigrationSetup, address: str, but: Collection[int]) -> int:
        """Have QEMU listen on a free port that is not in `but`; which one. Raises HostError if there is none."""
        refused: HostError | QmpError = HostError("no port is left for a move to this host", field="port")
        for ports in self._ranges(but):
            try:
                port = await machine.prepare_incoming(setup, address, ports)
            except QmpError as error:
                refused = error
                continue
            self._next = port + 1 if port < LAST else FIRST
            return port
        raise refused

    def _ranges(self, but: Collection[int]) -> Iterator[tuple[int, int]]:
        round_trip = (*range(self._next, LAST + 1), *range(FIRST, self._next))
        free = [port for port in round_trip if port not in but]
        for _, run in groupby(enumerate(free), lambda place: place[1] - place[0]):
            ports = [port for _, port in run]
            yield ports[0], ports[-1]
