"""The tiny guest in a real QEMU: what the tests, the demo and the benches rely on."""

from __future__ import annotations

import asyncio
import socket
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.integration.drivers.image.conftest import CACHE, DEADLINE, THEIRS, VNIC, Ground, gone
from tests.support import guest_agent

from serai.drivers.hypervisor.machine import QemuMachine
from serai.drivers.image.base import read_manifest
from serai.drivers.image.tiny import GUEST, ensure_tiny
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.schema.ids import ImageId, PoolId, VmId, VolumeId
from serai.schema.launch import Disk, FileDisk, KernelBoot, Launch

MIB = 1 << 20
BLOCK = 4096


async def booted(ground: Ground) -> tuple[QemuMachine, Path]:
    """A tiny guest with a card and a disk of 32 MiB; (the machine, the disk's file)."""
    image = await ensure_tiny(CACHE)
    file = ground.folder / "disk.raw"
    with file.open("wb") as opened:
        opened.truncate(32 * MIB)
    disk = Disk(
        index=0,
        name="data",
        size=32 * MIB,
        source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)),
        serial="data",
    )
    launch = Launch(
        vm=new_id(VmId),
        name="tiny",
        generation=1,
        machine=await ground.q35(),
        accel="tcg",
        cpus=1,
        max_cpus=1,
        memory=128 * MIB,
        uuid=str(uuid.uuid4()),
        boot=KernelBoot(image=new_id(ImageId), cmdline=f"{read_manifest(image).cmdline} serai.ip={THEIRS}/24"),
        disks=[disk],
        vnics=[VNIC],
    )
    machine = await ground.start(launch, kernel=image / "vmlinuz", initrd=image / "initrd.img", disks={0: file})
    return machine, file


async def test_life_of_a_tiny_guest(ground: Ground) -> None:
    """One boot for all of it: boots are what takes time."""
    machine, disk = await booted(ground)
    boot_id = (await ground.ask("boot-id"))["boot_id"]
    assert str(uuid.UUID(boot_id)) == boot_id
    assert (await ground.ask("uptime"))["uptime_ms"] > 0
    assert "error" in await ground.ask("no such request")
    assert "serai: tiny guest up" in ground.console()

    await echoes(ground)
    await outlives_a_client_that_is_gone(ground)
    await writes_memory(ground)
    await writes_disks(ground, disk)
    await answers_as_an_agent(machine)

    assert (await ground.ask("boot-id"))["boot_id"] == boot_id
    await machine.powerdown()
    assert await gone(machine) == "guest-shutdown"


async def echoes(ground: Ground) -> None:
    reader, writer = await ground.connect(7)
    async with asyncio.timeout(DEADLINE):
        for text in (b"one", b"x" * 100_000):
            writer.write(text)
            assert await reader.readexactly(len(text)) == text
    writer.close()
    await writer.wait_closed()

    connection = await namespace.in_netns(ground.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with connection:
        connection.setblocking(False)
        connection.connect((THEIRS, 7))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            await loop.sock_sendall(connection, b"datagram")
            assert await loop.sock_recv(connection, 100) == b"datagram"


async def outlives_a_client_that_is_gone(ground: Ground) -> None:
    for _ in range(5):
        _, writer = await ground.connect(7)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(b"y" * 50_000)
        # With data on its way and no linger, this resets the connection.
        writer.transport.abort()
    assert (await ground.ask("uptime"))["uptime_ms"] > 0


async def writes_memory(ground: Ground) -> None:
    rate, size = 20, 16
    began = (await ground.ask("uptime"))["uptime_ms"]
    assert (await ground.ask(f"mem {rate} {size}"))["ok"]
    async with asyncio.timeout(DEADLINE):
        # More than its size: it goes around.
        while (now := await ground.ask("mem"))["written"] < 2 * size * MIB:
            await asyncio.sleep(0.05)
    elapsed = (await ground.ask("uptime"))["uptime_ms"] - began
    assert now["on"]
    # By the guest's own clock it is never ahead of its rate, however slow the machine.
    assert now["written"] <= rate * MIB * elapsed / 1000 + 16 * BLOCK
    assert (await ground.ask("mem off"))["ok"]
    stopped = await ground.ask("mem")
    assert not stopped["on"]
    assert await ground.ask("mem") == stopped


async def writes_disks(ground: Ground, disk: Path) -> None:
    assert (await ground.ask("disk start /dev/vda"))["ok"]
    async with asyncio.timeout(DEADLINE):
        while (now := await ground.ask("disk check"))["written"] < 100:
            await asyncio.sleep(0.05)
    assert (now["on"], now["errors"]) == (True, 0)
    done = await ground.ask("disk stop")
    assert (done["on"], done["errors"]) == (False, 0)
    assert done["verified"] == done["written"] >= 100
    # Each block begins with its number, and the host sees it.
    with disk.open("rb") as file:
        for number in (0, 1, 99):
            file.seek(number * BLOCK)
            assert struct.unpack("<Q", file.read(8))[0] == number

    await ground.ask("disk start /dev/no-such-disk")
    async with asyncio.timeout(DEADLINE):
        while (now := await ground.ask("disk check"))["on"]:
            await asyncio.sleep(0.05)
    assert now["errors"] == 1


async def answers_as_an_agent(machine: QemuMachine) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await machine.guest_agent_open():
            await asyncio.sleep(0.1)

    async def ask(execute: str, **arguments: int) -> Any:
        return await guest_agent.ask(machine.vm, machine.run_dir / "qga.sock", execute, arguments, 10)

    assert await ask("guest-ping") == {}
    assert await ask("guest-sync", id=4711) == 4711
    assert (await ask("guest-get-osinfo"))["id"] == "serai-tiny"
    assert (await ask("guest-info"))["version"] == "serai-tiny"


@pytest.mark.parametrize("options", [[], ["-static"]])
async def test_its_program_compiles_without_a_warning(tmp_path: Path, options: list[str]) -> None:
    source = str(GUEST / "seraiguest.c")
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    await run(["gcc", *options, "-O2", "-pthread", *warnings, "-o", str(tmp_path / "program"), source])
