"""A guest as people run them: Debian, made and moved by the commands that people type, and reached as they reach it.

One boot for all of it: it takes a minute where there is no KVM.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.support import guest_agent
from tests.support.lab import Lab

from serai.drivers.image.mmdebstrap import BUILD_TIMEOUT, PACKAGES
from serai.lab.state import LabFolder
from serai.lib.process import run
from serai.schema.vm import Vm, VmState

from .cli import Serai

DEADLINE = 600.0
"""Seconds for whatever a guest does; it boots in one minute, and in several beside others on a busy machine."""
GATEWAY, DNS = "10.77.0.1", "10.77.0.53"
USER_DATA = "#cloud-config\nwrite_files:\n- path: /etc/from-user-data\n  content: it was read\n"
GIB = 1 << 30


class Session:
    """`serai vm ssh … -- cat`, held open: one TCP connection of the guest's, and a process in it."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = [*argv, "cat"]
        self.answered = 0

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=pipe)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        code = await self._process.wait()
        assert kind is not None or code == 0

    async def says(self) -> None:
        """One line goes there and comes back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = f"line {self.answered}\n".encode()
        self._process.stdin.write(line)
        async with asyncio.timeout(DEADLINE):
            assert await self._process.stdout.readline() == line
        self.answered += 1

    async def talk(self, over: asyncio.Event) -> None:
        """Line after line until it is over."""
        while not over.is_set():
            await self.says()


class Debian:
    """The guest, by `serai vm ssh` with the key of its own."""

    def __init__(self, lab: Lab, serai: Serai, name: str, key: Path) -> None:
        self.lab = lab
        self.serai = serai
        self.name = name
        self.words = ("vm", "ssh", "-i", str(key), f"debian@{name}", "--")

    async def says(self, command: str) -> str:
        return (await self.serai.well(*self.words, command)).out.strip()

    async def logged_in(self) -> None:
        """Wait until cloud-init has let the key in."""
        deadline = time.monotonic() + DEADLINE
        while (ran := await self.serai(*self.words, "true")).code == 255:
            assert time.monotonic() < deadline, ran.err
            await asyncio.sleep(1)
        assert ran.code == 0, ran

    async def agent_answers(self) -> None:
        """Serai says that the guest agent is there, and it answers on the host where the VM is."""
        vm = await self.lab.until(self.name, lambda now: now.status.guest_agent, DEADLINE)
        assert vm.status.host is not None
        socket = LabFolder.of(self.lab.name).host(vm.status.host) / "run" / "vms" / vm.id / "qga.sock"
        answer = await guest_agent.ask(vm.id, socket, "guest-get-host-name", {}, DEADLINE)
        assert answer == {"host-name": self.name}

    def session(self) -> Session:
        return Session([*self.serai.argv, *self.words])


@pytest.fixture
async def network(lab: Lab) -> AsyncIterator[str]:
    """As the lab's own network, on the same bridge, but with a gateway and a name server for guests."""
    serai, name = Serai(lab.name), "routed"
    words = ("--bridge", "br-lan", "--subnet", "10.77.0.0/24", "--range", "10.77.0.60-10.77.0.69")
    await serai.well("network", "create", name, *words, "--gateway", GATEWAY, "--nameserver", DNS)
    yield name
    await lab.clean()
    await serai.well("network", "delete", name)


@pytest.mark.slow
@pytest.mark.timeout(2400)
async def test_a_debian_guest_is_made_reached_and_moved(lab: Lab, network: str, tmp_path: Path) -> None:
    serai, key, data = Serai(lab.name), tmp_path / "key", tmp_path / "web.yaml"
    await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    data.write_text(USER_DATA)
    await serai.well("image", "build", "debian", timeout=BUILD_TIMEOUT)
    manifest = (await serai.well("image", "show", "debian", "-o", "json")).json["status"]["manifest"]
    assert (manifest["kind"], manifest["format"], manifest["cloud_init"]) == ("disk", "qcow2", True)
    assert set(PACKAGES) <= set(manifest["packages"])

    lab.vms.append("web1")
    size = ("--cpus", "2", "--memory", "768M", "--disk", "shared0:4G", "--network", network)
    seed = ("--ssh-key", f"{key}.pub", "--user-data", str(data))
    made = await serai.well("vm", "create", "web1", "--image", "debian", *size, *seed)
    vm = await lab.vm("web1")
    address = str(vm.spec.vnics[0].ip)
    assert made.out.startswith(f"vm web1 created: running on {vm.status.host} at {address} ("), made.out
    assert "fewest committed resources of 3 hosts" in made.out, made.out

    debian = Debian(lab, serai, "web1", key)
    await debian.logged_in()
    await is_as_asked(debian, address)
    await debian.agent_answers()
    await moves_while_somebody_is_in_it(debian, vm)
    await debian.agent_answers()

    await serai.well("vm", "stop", "web1", "--timeout", f"{DEADLINE:g}s", timeout=2 * DEADLINE)
    after = await lab.vm("web1")
    assert (after.status.state, after.status.reason) == (VmState.STOPPED, "shut down as asked")


async def is_as_asked(debian: Debian, address: str) -> None:
    """One login for all of it: a login takes a second where there is no KVM."""
    lines = (
        "sudo cloud-init status --wait | tail -n 1",
        "hostname",
        "cat /etc/from-user-data; echo",
        "df --output=size -B1 / | tail -n 1",
        "nproc",
        "awk '/MemTotal/ {print $2}' /proc/meminfo",
        "ip -4 -o addr show eth0 | awk '{print $4}'",
        "ip route show default | awk '{print $3}'",
        "resolvectl dns eth0 | awk '{print $NF}'",
        "sudo awk -F: '$1 == \"root\" {print substr($2, 1, 1)}' /etc/shadow",
        "sudo systemctl is-active serial-getty@ttyS0",
        "systemctl --failed --quiet --no-legend | wc -l",
        "ls /etc/ssh/ssh_host_*_key | wc -l",
    )
    said = (await debian.says("; ".join(lines))).splitlines()
    status, host, written, disk, cpus, memory, own, gateway, dns, root, getty, failed, keys = said
    assert status.split()[-1] == "done"
    assert (host, written) == (debian.name, "it was read")
    assert int(disk) > 3.5 * GIB
    assert (cpus, 640 << 10 < int(memory) <= 768 << 10) == ("2", True), memory
    assert (own, gateway, dns) == (f"{address}/24", GATEWAY, DNS)
    assert (root, getty, failed, keys) == ("!", "active", "0", "2")


async def moves_while_somebody_is_in_it(debian: Debian, vm: Vm) -> None:
    """The session that somebody has goes on, and so does the boot."""
    to = next(name for name in ("h1", "h2", "h3") if name != vm.status.host)
    boot = await debian.says("cat /proc/sys/kernel/random/boot_id")
    over = asyncio.Event()
    async with debian.session() as session:
        await session.says()
        async with asyncio.TaskGroup() as group:
            group.create_task(session.talk(over))
            await debian.serai.well("vm", "migrate", debian.name, "--to", to, "--wait")
            during = session.answered
            over.set()
        await session.says()
    assert during > 1
    after = await debian.lab.vm(debian.name)
    assert (after.status.host, after.status.state) == (to, VmState.RUNNING)
    assert after.spec.vnics == vm.spec.vnics
    assert await debian.says("cat /proc/sys/kernel/random/boot_id") == boot
    assert {host: len(pids) for host, pids in debian.lab.qemus(after).items() if pids} == {to: 1}
