"""A network of the tests' own: a namespace with one tap, whose other end is the guest's card."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serai.drivers.hypervisor import record
from serai.drivers.hypervisor.base import HostResources
from serai.drivers.hypervisor.machine import QemuMachine
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.schema.launch import Launch, VnicAttachment

DEADLINE = 240.0
"""Seconds; a guest takes its time where several share two cores without KVM."""
CACHE = Path("/var/cache/serai/images")
TAP, OURS, THEIRS, MAC = "tap0", "10.77.0.1", "10.77.0.100", "52:54:00:77:00:64"
VNIC = VnicAttachment(index=0, mac=MAC, bridge="none", tap=TAP)
TUNSETIFF = 0x400454CA
TAP_FLAGS = 0x0002 | 0x1000 | 0x4000  # a tap, no packet information, with the virtio header


def _tap() -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), TAP_FLAGS))
    return descriptor


class Ground:
    """Where a guest runs, and how it is reached."""

    def __init__(self, folder: Path, netns: str, tap: int) -> None:
        self.folder = folder
        self.netns = netns
        self.tap = tap
        self.hypervisor = QemuHypervisor(folder / "state")
        self._said = bytearray()
        self._console: tuple[asyncio.Task[None], asyncio.StreamWriter] | None = None

    async def q35(self) -> str:
        """The newest machine type."""
        return (await self.hypervisor.facts()).machine_types[0]

    async def start(self, launch: Launch, **places: Any) -> QemuMachine:
        """Start a VM on this ground, with its card on the tap; its console is kept from the first word on."""
        run_dir = self.folder / "vms" / launch.vm
        resources = HostResources(run_dir=run_dir, taps={0: self.tap}, cgroup=None, **places)
        machine = await self.hypervisor.start(launch, resources, incoming=False, paused=True)
        reader, writer = await asyncio.open_unix_connection(run_dir / "console.sock")
        self._console = (asyncio.create_task(self._listen(reader)), writer)
        await machine.cont()
        return machine

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                self._said += data

    async def close(self) -> None:
        """Hang up the console."""
        if self._console is not None:
            task, writer = self._console
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection to the guest; tried until it listens."""
        async with asyncio.timeout(DEADLINE):
            while True:
                connection = await namespace.in_netns(self.netns, socket.socket)
                connection.setblocking(False)
                try:
                    async with asyncio.timeout(5):
                        await asyncio.get_running_loop().sock_connect(connection, (THEIRS, port))
                    return await asyncio.open_connection(sock=connection)
                except (OSError, TimeoutError):
                    connection.close()
                    await asyncio.sleep(0.1)

    async def ask(self, line: str) -> dict[str, Any]:
        """One request to the tiny guest's control port."""
        reader, writer = await self.connect(9)
        try:
            async with asyncio.timeout(DEADLINE):
                writer.write(line.encode() + b"\n")
                answer: dict[str, Any] = json.loads(await reader.readline())
        finally:
            writer.close()
            await writer.wait_closed()
        return answer

    def console(self) -> str:
        """What the guest said on its console so far."""
        return self._said.decode(errors="replace")


async def gone(machine: QemuMachine) -> str | None:
    """Wait for the VM's end; returns QEMU's reason."""
    async with asyncio.timeout(DEADLINE):
        info = await machine.ended()
    await machine.close()
    return info.shutdown


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    netns = f"serai-t{new_id()[:6]}"
    async with contextlib.AsyncExitStack() as stack:
        await namespace.create(netns)
        stack.push_async_callback(namespace.delete, netns)
        tap = await namespace.in_netns(netns, _tap)
        stack.callback(os.close, tap)
        await run(["ip", "-n", netns, "address", "add", f"{OURS}/24", "dev", TAP])
        await run(["ip", "-n", netns, "link", "set", TAP, "up"])
        # Not pytest's folder: the path of a socket has 108 characters at most.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serai-")))
        folder.chmod(0o711)
        place = Ground(folder, netns, tap)
        try:
            yield place
        finally:
            await place.close()
            for run_dir in folder.glob("vms/*/"):
                runtime = record.read(run_dir)
                process = None if runtime is None else record.find(runtime)
                if process is not None:
                    await process.kill()
