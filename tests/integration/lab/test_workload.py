"""The tiny guest's clients, against the guest's own program run in a lab's host (without the right to reboot it)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.support.labworld import LabWorld

import serai
from bench.workload import Guest, TcpEcho
from serai.lab.state import LabFolder
from serai.lab.up import up
from serai.lib import process
from serai.schema.errors import HostError, UnavailableError

from .conftest import run, start_inside

SOURCE = Path(serai.__file__).parent / "drivers" / "image" / "guest" / "seraiguest.c"
ADDRESS = "10.77.0.11"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's program, built for this machine."""
    built = tmp_path_factory.mktemp("guest") / "seraiguest"
    process.run_sync(["gcc", "-O1", "-pthread", "-o", str(built), str(SOURCE)])
    return built


async def guest_on(world: LabWorld, program: Path) -> tuple[str, Guest]:
    name = world.name()
    await up(name, 1, bare=True)
    await start_inside(name, "h1", ["setpriv", "--bounding-set=-sys_boot", str(program)])
    guest = Guest(name, ADDRESS)
    await guest.up(timeout=30)
    return name, guest


async def test_boot_id_and_uptime_are_the_guests(world: LabWorld, program: Path) -> None:
    _, guest = await guest_on(world, program)
    assert await guest.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    first = await guest.uptime()
    assert 0 < first <= await guest.uptime() <= time.monotonic() + 1


async def test_memory_is_written_until_it_is_stopped(world: LabWorld, program: Path) -> None:
    _, guest = await guest_on(world, program)
    await guest.write_memory(rate=10, size=2)
    deadline = time.monotonic() + 30
    while not (count := await guest.memory()).written:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert count.on
    await guest.stop_memory()
    assert not (await guest.memory()).on


async def test_the_disk_writer_counts_and_finds_what_was_spoilt(world: LabWorld, program: Path) -> None:
    name, guest = await guest_on(world, program)
    image = LabFolder.of(name).host("h1") / "state" / "disk"
    image.write_bytes(bytes(1 << 20))
    shown = await run("lab", "exec", "--name", name, "h1", "--", "losetup", "--find", "--show", "/var/lib/serai/disk")
    device = shown.text.strip()
    await guest.write_disk(device)
    deadline = time.monotonic() + 30
    while (await guest.disk()).written < 5:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    sound = await guest.stop_disk()
    assert (sound.on, sound.errors) == (False, 0)
    assert sound.verified >= min(sound.written, 256)


async def test_a_device_that_is_not_there_is_an_error_of_the_writer(world: LabWorld, program: Path) -> None:
    _, guest = await guest_on(world, program)
    await guest.write_disk("/dev/no-such-device")
    deadline = time.monotonic() + 30
    while not (await guest.disk()).errors:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_request_that_the_guest_does_not_know_is_refused(world: LabWorld, program: Path) -> None:
    _, guest = await guest_on(world, program)
    with pytest.raises(HostError, match="unknown"):
        await guest.request("dance")


async def test_nobody_there_is_said_so(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    with pytest.raises(UnavailableError, match="refused"):
        await Guest(name, ADDRESS).boot_id()


async def test_a_connection_is_used_all_the_time(world: LabWorld, program: Path) -> None:
    name, _ = await guest_on(world, program)
    async with TcpEcho(name, ADDRESS) as echo:
        await echo.more(5)
        echo.check()
        assert echo.answered >= 5
        assert echo.worst_ms > 0
