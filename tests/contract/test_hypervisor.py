"""What every hypervisor does, the fake like the real one.

The real one runs guests of one boot sector: each says `R` on its console once it runs, and then waits for the power
button, powers itself off, or panics.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest

from serai.drivers.hypervisor import qmp, record
from serai.drivers.hypervisor.base import Hypervisor, Machine, MachineEvent, MigrationSetup, Placing, RunState
from serai.drivers.hypervisor.fake import FakeHypervisor, FakeMachine, FakeWorld
from serai.drivers.hypervisor.machine import QemuMachine
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.lib.ids import new_id
from serai.schema.attach import Disk, FileDisk, Launch, VnicAttachment
from serai.schema.errors import ConflictError, InvalidError, SeraiError, UnavailableError, UnsupportedError

DEADLINE = 60.0
MIB = 1 << 20
CAPABILITIES = {"events": True, "pause-before-switchover": True, "return-path": False}
FAST = MigrationSetup(capabilities=CAPABILITIES, downtime_limit_ms=300, bandwidth_bytes=0, tls_hostname=None)
SLOW = MigrationSetup(capabilities=CAPABILITIES, downtime_limit_ms=1, bandwidth_bytes=50_000, tls_hostname=None)

SAY_READY = "baf803 b052 ee"  # mov dx, 0x3f8; mov al, 'R'; out dx, al
POWER_OFF = "ba0406 b80020 ef f4 ebfd"  # out 0x604, 0x2000: ACPI's S5; hlt; jmp
GUESTS = {
    # out 0x602, 0x100 (enable the power button); say so; sti; hlt; in ax, 0x600; test ah, 1; jz to hlt; then power off
    "button": f"ba0206 b80001 ef {SAY_READY} fb f4 ba0006 ed f6c401 74f6 {POWER_OFF}",
    "off": f"{SAY_READY} {POWER_OFF}",
    "panic": f"{SAY_READY} ba0505 b001 ee f4 ebfd",  # pvpanic's port
}


def boot_sector(code: str) -> bytes:
    return bytes.fromhex(code).ljust(510, b"\0") + b"\x55\xaa"


class Bench(Protocol):
    """One kind of hypervisor, on two hosts that are joined, with what its guests can be made to do."""

    one: Hypervisor
    two: Hypervisor

    async def launch(self, guest: str = "button") -> Launch: ...

    def placing(self, launch: Launch, host: str = "one") -> Placing: ...

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

    async def close(self) -> None: ...


class FakeBench:
    def __init__(self) -> None:
        self.world = FakeWorld()
        self.one: Hypervisor = FakeHypervisor(self.world)
        self.two: Hypervisor = FakeHypervisor(self.world)

    async def launch(self, guest: str = "button") -> Launch:
        del guest
        return make_launch("pc-q35-10.0")

    def placing(self, launch: Launch, host: str = "one") -> Placing:
        return Placing(run_dir=Path("/nowhere") / host / launch.vm, disks={0: Path("/nowhere/disk")})

    async def running(self, machine: Machine) -> None:
        await machine.cont()

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

    async def close(self) -> None:
        await self.world.close()


class QemuBench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.one: Hypervisor = QemuHypervisor(folder / "state")
        self.two: Hypervisor = self.one

    async def launch(self, guest: str = "button") -> Launch:
        facts = await self.one.facts()
        launch = make_launch(facts.machine_types[0])
        disk = self.folder / f"{launch.vm}.raw"
        disk.write_bytes(boot_sector(GUESTS[guest]).ljust(MIB, b"\0"))
        return launch

    def placing(self, launch: Launch, host: str = "one") -> Placing:
        return Placing(run_dir=self.folder / host / launch.vm, disks={0: self.folder / f"{launch.vm}.raw"}, cgroup=None)

    async def running(self, machine: Machine) -> None:
        assert isinstance(machine, QemuMachine)
        reader, writer = await asyncio.open_unix_connection(str(machine.run_dir / "console.sock"))
        try:
            await machine.cont()
            async with asyncio.timeout(DEADLINE):
                await reader.readuntil(b"R")
        finally:
            writer.close()
            await writer.wait_closed()

    def kill_from_outside(self, machine: Machine) -> None:
        os.kill(machine.pid, signal.SIGKILL)

    def silence(self, machine: Machine) -> None:
        os.kill(machine.pid, signal.SIGSTOP)

    def wake(self, machine: Machine) -> None:
        os.kill(machine.pid, signal.SIGCONT)

    def guest_ends(self, machine: Machine, reason: str) -> None:
        """Its boot sector does."""

    async def close(self) -> None:
        # A test that failed may have left some, and still hold their connections.
        for folder in self.folder.glob("*/*/"):
            runtime = record.read(folder)
            process = None if runtime is None else record.find(runtime)
            if process is not None:
                await process.kill()


def make_launch(machine: str) -> Launch:
    disk = Disk(index=0, name="root", size=MIB, source=FileDisk(pool=new_id(), volume=new_id()), serial="root")
    return Launch(
        vm=new_id(),
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


@pytest.fixture(params=["fake", "qemu"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "fake":
        fake = FakeBench()
        yield fake
        await fake.close()
        return
    # Not pytest's folder: the path of a socket has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="serai-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        qemu = QemuBench(folder)
        yield qemu
        await qemu.close()


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
    return await bench.one.start(launch, bench.placing(launch), incoming=False, paused=True)


async def destination(bench: Bench, source: Machine) -> Machine:
    return await bench.two.start(source.launch, bench.placing(source.launch, "two"), incoming=True, paused=True)


async def listening(machine: Machine, setup: MigrationSetup = FAST) -> int:
    return await machine.prepare_incoming(setup, "127.0.0.1", (49352, 49399))


# --- life and end -----------------------------------------------------------------------------------------------------


async def test_facts_name_what_a_move_needs(bench: Bench) -> None:
    facts = await bench.one.facts()
    assert {"events", "pause-before-switchover"} <= set(facts.migration_capabilities)
    assert any(name.startswith("pc-q35-") for name in facts.machine_types)
    assert facts.accel in ("kvm", "tcg")


async def test_starts_paused_runs_pauses_and_ends(bench: Bench) -> None:
    machine = await started(bench)
    events = Events(machine)
    assert await machine.run_state() is RunState.PRELAUNCH
    await machine.cont()
    assert await machine.run_state() is RunState.RUNNING
    await machine.stop()
    assert await machine.run_state() is RunState.PAUSED
    await machine.cont()
    await machine.reset()
    await events.event("RESET")
    assert await machine.run_state() is RunState.RUNNING
    await machine.quit(10)
    info = await machine.ended()
    assert (info.code, info.signal, info.shutdown) == (0, None, "host-qmp-quit")
    assert [event.name for event in events.all][:3] == ["RESUME", "STOP", "RESUME"]
    assert await machine.ended() == info
    await machine.close()


async def test_starts_running(bench: Bench) -> None:
    launch = await bench.launch()
    machine = await bench.one.start(launch, bench.placing(launch), incoming=False, paused=False)
    assert await machine.run_state() is RunState.RUNNING
    await machine.kill()
    await machine.close()


async def test_power_button(bench: Bench) -> None:
    machine = await started(bench)
    await bench.running(machine)
    events = Events(machine)
    await machine.powerdown()
    async with asyncio.timeout(DEADLINE):
        info = await machine.ended()
    assert info.shutdown == "guest-shutdown"
    assert info.code == 0
    assert {"POWERDOWN", "SHUTDOWN"} <= {event.name for event in events.all}
    await machine.close()


@pytest.mark.parametrize(("guest", "reason"), [("off", "guest-shutdown"), ("panic", "guest-panic")])
async def test_guest_ends_itself(bench: Bench, guest: str, reason: str) -> None:
    machine = await started(bench, guest)
    await bench.running(machine)
    bench.guest_ends(machine, reason)
    async with asyncio.timeout(DEADLINE):
        info = await machine.ended()
    assert info.shutdown == reason
    await machine.close()


async def test_killed(bench: Bench) -> None:
    machine = await started(bench)
    await machine.cont()
    waiting = asyncio.create_task(machine.ended())
    bench.kill_from_outside(machine)
    info = await waiting
    assert (info.code, info.signal, info.shutdown) == (None, signal.SIGKILL, None)
    with pytest.raises(UnavailableError):
        await machine.run_state()
    await machine.close()


async def test_silence_is_not_death(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await started(bench)
    monkeypatch.setattr(qmp, "COMMAND_TIMEOUT", 0.05)
    bench.silence(machine)
    with pytest.raises(UnavailableError):
        await machine.run_state()
    monkeypatch.undo()
    bench.wake(machine)
    assert await machine.run_state() is RunState.PRELAUNCH
    bench.silence(machine)
    await machine.quit(0.05)
    assert (await machine.ended()).signal == signal.SIGKILL
    await machine.close()


async def test_second_start_of_the_same_vm_is_refused(bench: Bench) -> None:
    machine = await started(bench)
    with pytest.raises(ConflictError):
        await bench.one.start(machine.launch, bench.placing(machine.launch), incoming=False, paused=True)
    assert await machine.run_state() is RunState.PRELAUNCH
    await machine.kill()
    await machine.close()
    # Over is over: the folder is free again.
    again = await bench.one.start(machine.launch, bench.placing(machine.launch), incoming=False, paused=True)
    await again.kill()
    await again.close()


async def test_start_without_its_disk_is_refused(bench: Bench) -> None:
    launch = await bench.launch()
    placing = Placing(run_dir=bench.placing(launch).run_dir, cgroup=None)
    with pytest.raises(InvalidError):
        await bench.one.start(launch, placing, incoming=False, paused=True)
    assert await bench.one.adopt(launch.vm, placing.run_dir) is None


# --- adoption ---------------------------------------------------------------------------------------------------------


async def test_adopted_after_close(bench: Bench) -> None:
    machine = await started(bench)
    await machine.cont()
    await machine.close()
    run_dir = bench.placing(machine.launch).run_dir
    assert await bench.one.adopt(new_id(), run_dir) is None
    again = await bench.one.adopt(machine.vm, run_dir)
    assert again is not None
    assert (again.pid, again.launch) == (machine.pid, machine.launch)
    assert await again.run_state() is RunState.RUNNING
    await again.quit(10)
    info = await again.ended()
    assert info.shutdown == "host-qmp-quit"
    await again.close()
    assert await machine.ended() is not None
    assert await bench.one.adopt(machine.vm, run_dir) is None


async def test_guest_that_ended_while_nobody_watched(bench: Bench) -> None:
    machine = await started(bench, "off")
    events = Events(machine)
    await machine.close()
    events.forget()
    # Run by someone who does not watch it to its end.
    other = await bench.one.adopt(machine.vm, bench.placing(machine.launch).run_dir)
    assert other is not None
    await other.cont()
    await other.close()
    bench.guest_ends(machine, "guest-shutdown")
    async with asyncio.timeout(DEADLINE):
        while True:
            again = await bench.one.adopt(machine.vm, bench.placing(machine.launch).run_dir)
            assert again is not None
            if await _is_over(again):
                break
            await again.close()
            await asyncio.sleep(0.05)
        info = await again.ended()
    assert info.shutdown == "guest-shutdown"
    await again.close()


async def _is_over(machine: Machine) -> bool:
    try:
        return await machine.run_state() is RunState.SHUTDOWN
    except SeraiError:
        return True


# --- migration --------------------------------------------------------------------------------------------------------


async def test_moves_with_a_pause_before_the_switch(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    assert await target.run_state() is RunState.INMIGRATE
    leaving, arriving = Events(source), Events(target)
    port = await listening(target)
    await source.migrate("127.0.0.1", port, FAST)
    await leaving.status("pre-switchover")
    assert await source.run_state() is not RunState.RUNNING
    assert "completed" not in arriving.statuses
    await source.migrate_continue()
    await arriving.status("completed")
    await leaving.status("completed")
    assert leaving.statuses == ["setup", "active", "pre-switchover", "device", "completed"]
    assert [event.at for event in leaving.all] == sorted(event.at for event in leaving.all)
    assert await source.run_state() is RunState.POSTMIGRATE
    assert await target.run_state() is RunState.PAUSED
    await target.cont()
    await target.announce()
    stats = await source.migration_stats()
    assert stats.status == "completed"
    assert stats.rounds >= 1
    assert stats.ram_transferred > 0
    await source.quit(10)
    await source.close()
    # It lives on over there, with its power button armed.
    await target.powerdown()
    async with asyncio.timeout(DEADLINE):
        assert (await target.ended()).shutdown == "guest-shutdown"
    await target.close()


async def test_source_can_go_on_after_all_was_sent(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), FAST)
    await leaving.status("pre-switchover")
    await source.migrate_continue()
    await leaving.status("completed")
    await target.kill()
    await target.close()
    await source.cont()
    assert await source.run_state() is RunState.RUNNING
    await source.kill()
    await source.close()


async def test_cancelled_while_memory_is_sent(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    if isinstance(bench, FakeBench):
        bench.world.hold_at("pre-switchover")
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), SLOW)
    await leaving.status("active")
    with pytest.raises(SeraiError):
        await source.migrate("127.0.0.1", 49399, SLOW)
    await source.migrate_cancel()
    await leaving.status("cancelled")
    assert await source.run_state() is RunState.RUNNING
    assert (await source.migration_stats()).status == "cancelled"
    await target.kill()
    # And it can be tried again.
    if isinstance(bench, FakeBench):
        bench.world.release("pre-switchover")
    second = await bench.two.start(source.launch, bench.placing(source.launch, "three"), incoming=True, paused=True)
    arriving = Events(second)
    await source.migrate("127.0.0.1", await listening(second), FAST)
    await leaving.status("pre-switchover")
    await source.migrate_continue()
    await arriving.status("completed")
    for machine in (source, target, second):
        await machine.kill()
        await machine.close()


async def test_cancelled_before_the_switch(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), FAST)
    await leaving.status("pre-switchover")
    await source.migrate_cancel()
    await leaving.status("cancelled")
    await leaving.until(lambda: [e.name for e in leaving.all].count("RESUME") == 1)
    assert await source.run_state() is RunState.RUNNING
    for machine in (source, target):
        await machine.kill()
        await machine.close()


@pytest.mark.parametrize("at", ["active", "pre-switchover"])
async def test_destination_killed(bench: Bench, at: str) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    if isinstance(bench, FakeBench) and at == "active":
        bench.world.hold_at("pre-switchover")
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), SLOW if at == "active" else FAST)
    await leaving.status(at)
    bench.kill_from_outside(target)
    assert (await target.ended()).signal == signal.SIGKILL
    if isinstance(bench, FakeBench) and at == "active":
        bench.world.release("pre-switchover")
    if at == "pre-switchover":
        await source.migrate_continue()
    await leaving.status("failed")
    assert (await source.migration_stats()).error
    if at == "pre-switchover":
        await leaving.until(lambda: any(event.name == "RESUME" for event in leaving.all))
    assert await source.run_state() is RunState.RUNNING
    for machine in (source, target):
        await machine.kill()
        await machine.close()


async def test_nobody_listens(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    leaving = Events(source)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        try:
            await source.migrate("127.0.0.1", port, FAST)
            await leaving.status("failed")
        except SeraiError:
            pass
    assert await source.run_state() is RunState.RUNNING
    await source.kill()
    await source.close()


async def test_two_destinations_take_two_ports(bench: Bench) -> None:
    first, second = await started(bench), await started(bench)
    targets = [await destination(bench, machine) for machine in (first, second)]
    ports = [await listening(target) for target in targets]
    assert len(set(ports)) == 2
    assert all(49352 <= port <= 49399 for port in ports)
    for machine in (first, second, *targets):
        await machine.kill()
        await machine.close()


async def test_unknown_capability_is_refused(bench: Bench) -> None:
    machine = await started(bench)
    setup = MigrationSetup({"teleport": True}, downtime_limit_ms=1, bandwidth_bytes=0, tls_hostname=None)
    with pytest.raises(UnsupportedError):
        await machine.migrate("127.0.0.1", 49399, setup)
    assert (await machine.migration_stats()).status == "none"
    with pytest.raises(SeraiError):
        await machine.migrate_continue()
    await machine.kill()
    await machine.close()


async def test_tls_without_certificates_is_refused(bench: Bench) -> None:
    machine = await started(bench)
    setup = MigrationSetup(CAPABILITIES, downtime_limit_ms=1, bandwidth_bytes=0, tls_hostname="h2")
    with pytest.raises(UnsupportedError):
        await machine.migrate("127.0.0.1", 49399, setup)
    await machine.kill()
    await machine.close()


# --- live changes -----------------------------------------------------------------------------------------------------


async def test_cpus_grow_up_to_what_was_planned(bench: Bench) -> None:
    machine = await started(bench)
    await machine.set_cpus(2)
    assert machine.launch.cpus == 2
    for count in (1, 3):
        with pytest.raises(UnsupportedError):
            await machine.set_cpus(count)
    with pytest.raises(UnsupportedError):
        await machine.set_memory(64 * MIB)
    await machine.kill()
    await machine.close()


async def test_disk_plugged_in_is_part_of_the_launch(bench: Bench, tmp_path: Path) -> None:
    machine = await started(bench)
    await machine.cont()
    file = tmp_path / "more.raw"
    file.write_bytes(bytes(MIB))
    more = Disk(index=1, name="more", size=MIB, source=FileDisk(pool=new_id(), volume=new_id()))
    await machine.attach_disk(more, file)
    assert [disk.index for disk in machine.launch.disks] == [0, 1]
    with pytest.raises(ConflictError):
        await machine.attach_disk(more, file)
    with pytest.raises(UnsupportedError):
        await machine.attach_disk(more.model_copy(update={"index": 4}), file)
    with pytest.raises(ConflictError):
        await machine.detach_disk(2)
    with file.open("r+b") as grown:
        grown.truncate(2 * MIB)
    await machine.block_grow(1, 2 * MIB)
    assert machine.launch.disks[1].size == 2 * MIB
    with pytest.raises(ConflictError):
        await machine.block_grow(3, 2 * MIB)
    await machine.close()
    again = await bench.one.adopt(machine.vm, bench.placing(machine.launch).run_dir)
    assert again is not None
    assert again.launch == machine.launch
    await again.kill()
    await again.close()


async def test_vnics_beyond_the_ports_need_a_restart(bench: Bench) -> None:
    machine = await started(bench)
    vnic = VnicAttachment(index=5, mac="52:54:00:00:00:05", bridge="br-lan", tap="svtest-5")
    with pytest.raises(UnsupportedError):
        await machine.attach_vnic(vnic, -1)
    with pytest.raises(ConflictError):
        await machine.detach_vnic(0)
    await machine.kill()
    await machine.close()


async def test_no_guest_agent(bench: Bench) -> None:
    machine = await started(bench)
    await machine.cont()
    with pytest.raises(UnavailableError):
        await machine.guest("guest-ping", {}, timeout=1)
    await machine.kill()
    await machine.close()
