"""The two kinds of hypervisor on which the contract is tried, and what the tests share.

The real one runs guests of one boot sector (`tests/support/bootsectors.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.support.bootsectors import GUESTS, boot_sector, says_ready

from serai.drivers.hypervisor import record
from serai.drivers.hypervisor.base import HostResources, Hypervisor, Machine, MachineEvent, MigrationSetup
from serai.drivers.hypervisor.fake import FakeMachine, FakeWorld
from serai.drivers.hypervisor.fake_hypervisor import FakeHypervisor
from serai.drivers.hypervisor.machine import QemuMachine
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.lib.ids import new_id
from serai.lib.mount import unmount_below
from serai.lib.process import run
from serai.schema.ids import PoolId, VmId, VolumeId
from serai.schema.launch import Disk, FileDisk, Launch

DEADLINE = 60.0
MIB = 1 << 20
CAPABILITIES = {"events": True, "pause-before-switchover": True, "return-path": False}
FAST = MigrationSetup(capabilities=CAPABILITIES, downtime_limit_ms=300, bandwidth_bytes=0, tls_hostname=None)
SLOW = MigrationSetup(capabilities=CAPABILITIES, downtime_limit_ms=1, bandwidth_bytes=50_000, tls_hostname=None)


class Bench(Protocol):
    """One kind of hypervisor, on two hosts that are joined, with what its guests can be made to do."""

    one: Hypervisor
    two: Hypervisor

    async def launch(self, guest: str = "button") -> Launch: ...

    def resources(self, launch: Launch, host: str = "one") -> HostResources: ...

    async def running(self, machine: Machine) -> None:
        """`cont`, and the guest is up."""
        ...

    def kill_from_outside(self, machine: Machine) -> None: ...

    def silence(self, machine: Machine) -> None:
        """QEMU answers no more, and is not dead."""
        ...

    def wake(self, machine: Machine) -> None: ...

    def guest_ends(self, machine: Machine, reason: str) -> None:
        """The guest does so by itself, if it has not been started to."""
        ...

    def fill_storage(self, machine: Machine) -> None:
        """What its disk lies on has no room any more, and the guest `writer` writes once it runs."""
        ...

    def mend_storage(self, machine: Machine) -> None: ...

    async def written(self, machine: Machine) -> None:
        """The guest has written."""
        ...

    async def close(self) -> None: ...


class FakeBench:
    def __init__(self) -> None:
        self.world = FakeWorld()
        self.one: Hypervisor = FakeHypervisor(self.world)
        self.two: Hypervisor = FakeHypervisor(self.world)
        self._full: set[str] = set()

    async def launch(self, guest: str = "button") -> Launch:
        del guest
        return make_launch("pc-q35-10.0")

    def resources(self, launch: Launch, host: str = "one") -> HostResources:
        return HostResources(run_dir=Path("/nowhere") / host / launch.vm, disks={0: Path("/nowhere/disk")})

    async def running(self, machine: Machine) -> None:
        await machine.cont()
        if machine.vm in self._full:
            assert isinstance(machine, FakeMachine)
            machine.process.io_error()

    def kill_from_outside(self, machine: Machine) -> None:
        assert isinstance(machine, FakeMachine)
        machine.process.end(by_signal=signal.SIGKILL)

    def silence(self, machine: Machine) -> None:
        assert isinstance(machine, FakeMachine)
        machine.process.silent = True

    def wake(self, machine: Machine) -> None:
        assert isinstance(machine, FakeMachine)
        machine.process.silent = False

    def guest_ends(self, machine: Machine, reason: str) -> None:
        assert isinstance(machine, FakeMachine)
        machine.process.guest_ends(reason)

    def fill_storage(self, machine: Machine) -> None:
        self._full.add(machine.vm)

    def mend_storage(self, machine: Machine) -> None:
        self._full.remove(machine.vm)

    async def written(self, machine: Machine) -> None:
        """It has no guest."""

    async def close(self) -> None:
        await self.world.close()


class Kept(QemuHypervisor):
    """Remembers its machines, to end those that a test which failed has left."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.machines: list[QemuMachine] = []

    async def start(self, launch: Launch, resources: HostResources, *, incoming: bool, paused: bool) -> QemuMachine:
        machine = await super().start(launch, resources, incoming=incoming, paused=paused)
        self.machines.append(machine)
        return machine

    async def adopt(self, vm: str, run_dir: Path) -> QemuMachine | None:
        machine = await super().adopt(vm, run_dir)
        if machine is not None:
            self.machines.append(machine)
        return machine


class QemuBench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hypervisor = Kept(folder / "state")
        self.one: Hypervisor = self._hypervisor
        self.two: Hypervisor = self._hypervisor

    async def launch(self, guest: str = "button") -> Launch:
        facts = await self.one.facts()
        launch = make_launch(facts.machine_types[0])
        if guest == "writer":
            await self._mount_small(launch)
        disk = self._disk(launch)
        disk.write_bytes(boot_sector(GUESTS[guest]))
        os.truncate(disk, MIB)
        return launch

    async def _mount_small(self, launch: Launch) -> None:
        small = self.folder / f"small-{launch.vm}"
        small.mkdir()
        await run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=711", "none", str(small)])

    def _disk(self, launch: Launch) -> Path:
        small = self.folder / f"small-{launch.vm}"
        return (small if small.exists() else self.folder) / f"{launch.vm}.raw"

    def resources(self, launch: Launch, host: str = "one") -> HostResources:
        return HostResources(run_dir=self.folder / host / launch.vm, disks={0: self._disk(launch)}, cgroup=None)

    async def running(self, machine: Machine) -> None:
        assert isinstance(machine, QemuMachine)
        async with asyncio.timeout(DEADLINE), says_ready(machine):
            await machine.cont()

    def kill_from_outside(self, machine: Machine) -> None:
        os.kill(machine.pid, signal.SIGKILL)

    def silence(self, machine: Machine) -> None:
        os.kill(machine.pid, signal.SIGSTOP)

    def wake(self, machine: Machine) -> None:
        os.kill(machine.pid, signal.SIGCONT)

    def guest_ends(self, machine: Machine, reason: str) -> None:
        """Its boot sector does."""

    def fill_storage(self, machine: Machine) -> None:
        with self._filler(machine).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def mend_storage(self, machine: Machine) -> None:
        self._filler(machine).unlink()

    def _filler(self, machine: Machine) -> Path:
        return self._disk(machine.launch).with_name("filler")

    async def written(self, machine: Machine) -> None:
        disk = self._disk(machine.launch)
        async with asyncio.timeout(DEADLINE):
            while not any(disk.read_bytes()[512:]):
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        # A test that failed has left some, and their connections; one that froze them, too.
        for machine in self._hypervisor.machines:
            await machine.kill()
            await machine.close()
        # And what a start that failed or was cancelled has left.
        for folder in self.folder.glob("*/*/"):
            runtime = record.read(folder)
            process = None if runtime is None else record.find(runtime)
            if process is not None:
                await process.kill()
        unmount_below(self.folder)


def make_launch(machine: str) -> Launch:
    disk = Disk(
        index=0, name="root", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)), serial="root"
    )
    return Launch(
        vm=new_id(VmId),
        name="guest",
        generation=1,
        machine=machine,
        accel="tcg",
        cpus=1,
        max_cpus=2,
        memory=32 * MIB,
        uuid=str(uuid.uuid4()),
        disks=[disk],
    )


class Events:
    """What a machine said, and waiting for a word of it."""

    def __init__(self, machine: Machine) -> None:
        self.all: list[MachineEvent] = []
        self._news = asyncio.Event()
        self.forget = machine.subscribe(self._on_event)

    def _on_event(self, event: MachineEvent) -> None:
        self.all.append(event)
        self._news.set()

    @property
    def statuses(self) -> list[str]:
        return [str(event.data["status"]) for event in self.all if event.name == "MIGRATION"]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def status(self, status: str) -> None:
        await self.until(lambda: status in self.statuses)

    async def event(self, name: str) -> None:
        await self.until(lambda: any(event.name == name for event in self.all))


async def started(bench: Bench, guest: str = "button") -> Machine:
    launch = await bench.launch(guest)
    return await bench.one.start(launch, bench.resources(launch), incoming=False, paused=True)


async def destination(bench: Bench, source: Machine) -> Machine:
    return await bench.two.start(source.launch, bench.resources(source.launch, "two"), incoming=True, paused=True)


async def listening(machine: Machine, setup: MigrationSetup = FAST) -> int:
    return await machine.prepare_incoming(setup, "127.0.0.1", (49352, 49399))
