"""What starts and finds the machines of `fake`, in memory; see there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from serai.drivers.hypervisor.base import HostResources, QemuProcess, QmpError, RunState
from serai.drivers.hypervisor.fake import CAPABILITIES, MACHINES, FakeMachine, FakeProcess, FakeWorld
from serai.schema.errors import ConflictError, InvalidError, UnavailableError
from serai.schema.host import Ability, HypervisorFacts
from serai.schema.launch import Launch


class FakeHypervisor:
    """See `base.Hypervisor`. Hosts that are to migrate to one another share a world."""

    def __init__(self, world: FakeWorld | None = None) -> None:
        self.world = world or FakeWorld()
        self.fail_start: str | None = None
        self._started: list[FakeProcess] = []

    async def facts(self) -> HypervisorFacts:
        return HypervisorFacts(
            qemu_version="10.0.0",
            machine_types=list(MACHINES),
            migration_capabilities=list(CAPABILITIES),
            suppress_vmdesc=True,
            accel="tcg",
            cpu_model="fake",
            cpu_flags=[],
            abilities=[Ability(name="qemu", found=True, detail="a fake", required=True)],
        )

    async def retry_kvm(self) -> HypervisorFacts:
        return await self.facts()

    async def start(self, launch: Launch, resources: HostResources, *, incoming: bool, paused: bool) -> FakeMachine:
        present = self.world.processes.get(resources.run_dir)
        if present is not None and present.alive:
            raise ConflictError("QEMU of this VM runs on this host already", field="vm", value=launch.vm)
        for disk in launch.disks:
            if disk.source.kind == "file" and disk.index not in resources.disks:
                raise InvalidError("nothing is given for this disk on this host", field="disks", value=disk.index)
        for vnic in launch.vnics:
            if vnic.index not in resources.taps:
                raise InvalidError("no tap is given for this VNIC on this host", field="vnics", value=vnic.index)
        if self.fail_start is not None:
            raise QmpError("start", "GenericError", self.fail_start)
        process = FakeProcess(self.world, launch, resources, incoming=incoming)
        self.world.processes[resources.run_dir] = process
        self._started.append(process)
        machine = FakeMachine(process, adopted=False)
        if not incoming and not paused:
            await machine.cont()
        return machine

    async def adopt(self, vm: str, run_dir: Path) -> FakeMachine | None:
        process = self.world.processes.get(run_dir)
        if process is None or not process.alive or process.launch.vm != vm:
            return None
        if process.silent:
            raise UnavailableError(f"QEMU of VM {vm} did not answer on its control socket")
        machine = FakeMachine(process, adopted=True)
        if process.state is RunState.SHUTDOWN or process.state is RunState.GUEST_PANICKED:
            process.shutdown = "guest-panic" if process.state is RunState.GUEST_PANICKED else "guest-shutdown"
            asyncio.get_running_loop().call_soon(lambda: process.end(code=0))
        return machine

    async def processes(self) -> list[QemuProcess]:
        return [
            QemuProcess(process.launch.vm, process.pid, _killer(process)) for process in self._started if process.alive
        ]


def _killer(process: FakeProcess) -> Callable[[], Awaitable[None]]:
    async def kill() -> None:
        process.end(by_signal=signal.SIGKILL)

    return kill
