"""QEMU with a real kernel in it: the tiny guest boots, answers, lets devices go, and moves."""

from __future__ import annotations

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support import guest_agent

from serai.drivers.hypervisor import record
from serai.drivers.hypervisor.base import HostResources, MachineEvent, MigrationSetup
from serai.drivers.hypervisor.machine import QemuMachine
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.drivers.image.tiny import CMDLINE, ensure_tiny
from serai.lib.ids import new_id
from serai.lib.process import spawn
from serai.schema.errors import UnavailableError, UnsupportedError
from serai.schema.ids import ImageId, PoolId, VmId, VolumeId
from serai.schema.launch import Disk, FileDisk, KernelBoot, Launch

DEADLINE = 120.0
MIB = 1 << 20
CACHE = Path("/var/cache/serai/images")
UP = b"serai: tiny guest up"
SETUP = MigrationSetup(
    {"events": True, "pause-before-switchover": False, "return-path": False},
    downtime_limit_ms=100,
    bandwidth_bytes=0,
    tls_hostname=None,
)


class Host:
    """Where the tiny guest runs."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.image = image
        self.hypervisor = QemuHypervisor(folder / "state")

    async def launch(self, machine: str, cpus: int = 1, max_cpus: int = 1) -> Launch:
        facts = await self.hypervisor.facts()
        return Launch(
            vm=new_id(VmId),
            name="tiny",
            generation=1,
            machine=facts.machine_types[0] if machine == "q35" else machine,
            accel="tcg",
            cpus=cpus,
            max_cpus=max_cpus,
            memory=128 * MIB,
            uuid=str(uuid.uuid4()),
            boot=KernelBoot(image=new_id(ImageId), cmdline=CMDLINE),
        )

    def resources(self, launch: Launch, end: str = "one") -> HostResources:
        kernel, initrd = self.image / "vmlinuz", self.image / "initrd.img"
        return HostResources(run_dir=self.folder / end / launch.vm, kernel=kernel, initrd=initrd, cgroup=None)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    image = await ensure_tiny(CACHE)
    # Not pytest's folder: the path of a socket has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="serai-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield Host(folder, image)
        for run_dir in folder.glob("*/*/"):
            runtime = record.read(run_dir)
            process = None if runtime is None else record.find(runtime)
            if process is not None:
                await process.kill()


@asynccontextmanager
async def console(machine: QemuMachine) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(str(machine.run_dir / "console.sock"))
    try:
        async with asyncio.timeout(DEADLINE):
            yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def booted(host: Host, launch: Launch) -> QemuMachine:
    machine = await host.hypervisor.start(launch, host.resources(launch), incoming=False, paused=True)
    async with console(machine) as (reader, _):
        await machine.cont()
        await reader.readuntil(UP)
    return machine


async def says(machine: QemuMachine, command: str) -> str:
    """The last line of what a shell command prints on the guest's console."""
    async with console(machine) as (reader, writer):
        # Split in the command, whole in its output only.
        writer.write(f"\necho BE''GIN; {command}; echo E''ND\n".encode())
        text = await reader.readuntil(b"END")
    return text.decode(errors="replace").partition("BEGIN")[2].removesuffix("END").strip()


def until(condition: str, then: str) -> str:
    """A shell command that waits for a condition, a while."""
    return f"n=0; until {condition} || [ $n = 300 ]; do sleep 0.1; n=$((n+1)); done; {then}"


async def agent_answers(machine: QemuMachine) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await guest_agent.ask(machine.vm, machine.run_dir / "qga.sock", "guest-ping", {}, 5)
                return
            except UnavailableError:
                await asyncio.sleep(0.1)


async def gone(machine: QemuMachine) -> str | None:
    async with asyncio.timeout(DEADLINE):
        info = await machine.ended()
    await machine.close()
    return info.shutdown


async def test_life_of_a_q35_guest(host: Host) -> None:
    machine = await booted(host, await host.launch("q35", max_cpus=2))
    await agent_answers(machine)
    assert await machine.guest_agent_open()

    file = host.folder / "disk.raw"
    file.write_bytes(bytes(MIB))
    disk = Disk(
        index=0, name="data", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)), serial="data"
    )
    await machine.attach_disk(disk, file)
    assert await says(machine, until("[ -e /sys/block/vda/size ]", "cat /sys/block/vda/size")) == "2048"
    with file.open("r+b") as grown:
        grown.truncate(2 * MIB)
    await machine.block_grow(0, 2 * MIB)
    size = '[ "$(cat /sys/block/vda/size)" = 4096 ]'
    assert await says(machine, until(size, "cat /sys/block/vda/size")) == "4096"
    await machine.detach_disk(0)
    assert machine.launch.disks == []
    assert await says(machine, until("[ ! -e /sys/block/vda ]", "ls /sys/block")) == ""

    # Taken out and put back in: nothing of it was left behind in QEMU.
    await machine.attach_disk(disk.model_copy(update={"size": 2 * MIB}), file)
    await machine.set_cpus(2)
    await machine.powerdown()
    assert await gone(machine) == "guest-shutdown"


async def test_a_panic_is_told(host: Host) -> None:
    machine = await booted(host, await host.launch("q35"))
    async with console(machine) as (_, writer):
        writer.write(b"\necho c >/proc/sysrq-trigger\n")
        assert await gone(machine) == "guest-panic"


async def move(host: Host, source: QemuMachine) -> QemuMachine:
    """The VM on its other end, running; the source has ended."""
    target = await host.hypervisor.start(
        source.launch, host.resources(source.launch, "two"), incoming=True, paused=True
    )
    arrived: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_event(event: MachineEvent) -> None:
        status = str(event.data.get("status"))
        if event.name == "MIGRATION" and status in ("completed", "failed") and not arrived.done():
            arrived.set_result(status)

    target.subscribe(on_event)
    await source.migrate("127.0.0.1", await target.prepare_incoming(SETUP, "127.0.0.1", (49552, 49599)), SETUP)
    async with asyncio.timeout(DEADLINE):
        assert await arrived == "completed", record.log_tail(target.run_dir)
    await target.cont()
    await source.quit(10)
    await source.close()
    return target


async def test_moves_and_lives_on(host: Host) -> None:
    source = await booted(host, await host.launch("q35"))
    boot_id = await says(source, "cat /proc/sys/kernel/random/boot_id")
    target = await move(host, source)
    assert await says(target, "cat /proc/sys/kernel/random/boot_id") == boot_id
    await agent_answers(target)
    await target.powerdown()
    assert await gone(target) == "guest-shutdown"


@asynccontextmanager
async def busy_machine() -> AsyncIterator[None]:
    """All processors have something to do, twice."""
    hogs = [await spawn(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for hog in hogs:
            await hog.kill()


async def test_microvm_boots_on_a_busy_machine_and_moves(host: Host) -> None:
    # Without the counter's rate on its command line an emulated one stands still here, early in its boot.
    async with busy_machine():
        source = await booted(host, await host.launch("microvm"))
    boot_id = await says(source, "cat /proc/sys/kernel/random/boot_id")
    target = await move(host, source)
    assert await says(target, "cat /proc/sys/kernel/random/boot_id") == boot_id
    with pytest.raises(UnsupportedError):
        await target.detach_disk(0)
    await target.powerdown()
    assert await gone(target) == "guest-shutdown"
