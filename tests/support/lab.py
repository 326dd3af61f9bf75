"""A whole lab that stands, and what tests do in it: make VMs, ask for things, kill processes and bring them back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.invariant import Watch
from tests.support.labworld import NOTHING, LabWorld
from tests.support.looking import PATIENCE, journal, received, recorded, until

from bench.workload import Guest
from serai.client import context as contexts
from serai.client.http import Client
from serai.lab import services, state
from serai.lab.down import down
from serai.lab.state import LabFolder, ProcessRecord
from serai.lab.up import up
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.pki import TlsFiles
from serai.schema.errors import NotFoundError, SeraiError
from serai.schema.host import HostState
from serai.schema.ids import HostName, NetworkId, PoolId
from serai.schema.image import ImageCreate, ImageSource, ImageSpec
from serai.schema.job import Job, JobState
from serai.schema.vm import DiskSpec, RestartPolicy, Vm, VmCreate, VmMigrate, VmSpec, VmState, VnicSpec

GOING_ON = (VmState.RUNNING, VmState.STARTING, VmState.MIGRATING, VmState.STOPPING, VmState.UNKNOWN)
"""States that are no reason, in the end, for a VM that does not run."""
SOME_STATE = 1 << 18
"""Bytes over a migration link that are more than what two QEMUs say to one another before the guest's memory."""
LINK_RATE = 10**9
"""Of each link of the lab, in bit/s."""


class Lab:
    """The standing lab, and what tests do in it. `client` is the test's own."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self.vms: list[str] = []

    # --- VMs ---

    async def done(self, job: Job) -> Job:
        """The job, ended well; raises its error otherwise."""
        ended = await self.client.wait_job(job.id)
        assert ended.state is JobState.DONE, ended.error.sentence() if ended.error else ended.state
        return ended

    async def create(self, name: str = "", *, host: str | None = "h1", up: bool = True, **spec: Any) -> Vm:
        """A tiny VM with a shared disk; by default writing 4 MB/s of memory."""
        name = name or f"t{new_id()[:6]}"
        self.vms.append(name)
        values: dict[str, Any] = {
            "image": "tiny",
            "memory": 128 << 20,
            "disks": [DiskSpec(pool=PoolId("shared0"), size=32 << 20)],
            "vnics": [VnicSpec(network=NetworkId("lan"))],
            "cmdline": "serai.mem=4:2",
            "host": host,
            "restart": RestartPolicy.NEVER,
            **spec,
        }
        await self.done(await self.client.call("vm.create", body=VmCreate(name=name, spec=VmSpec(**values))))
        vm = await self.vm(name)
        if up:
            await self.guest(vm).up()
        return vm

    async def vm(self, name: str) -> Vm:
        found: Vm = await self.client.call("vm.show", name)
        return found

    def guest(self, vm: Vm) -> Guest:
        return Guest(self.name, str(vm.spec.vnics[0].ip))

    async def migrate(self, vm: str, to: str) -> Job:
        job: Job = await self.client.call("vm.migrate", vm, body=VmMigrate(to=HostName(to)))
        return job

    async def until(self, name: str, wanted: Callable[[Vm], bool], timeout: float = PATIENCE) -> Vm:
        """The VM, once it is as wanted."""
        deadline = time.monotonic() + timeout
        while True:
            vm = await self.vm(name)
            if wanted(vm):
                return vm
            assert time.monotonic() < deadline, f"{vm.status.state} on {vm.status.host}: {vm.status.reason}"
            await asyncio.sleep(0.1)

    async def clean(self) -> None:
        """Delete the test's VMs."""
        for name in self.vms:
            try:
                job = await self.client.call("vm.delete", name, query={"force": True})
            except NotFoundError:
                continue
            await self.client.wait_job(job.id)

    # --- processes ---

    @property
    def hosts(self) -> list[str]:
        return list(LabFolder.of(self.name).load().plan.hosts)

    def qemus(self, vm: Vm) -> dict[str, list[int]]:
        """Host to the pids of the VM's QEMUs there."""
        return self.qemus_of(vm.id)

    def qemus_of(self, vm_id: str) -> dict[str, list[int]]:
        """The same, of a VM that may be deleted."""
        plan = LabFolder.of(self.name).load().plan
        return {host: qemus_in(plan.netns(host), vm_id) for host in plan.hosts}

    def host_of(self, pid: int) -> str | None:
        """The host that a process is on."""
        plan = LabFolder.of(self.name).load().plan
        return next((host for host in plan.hosts if pid in namespace.processes_in(plan.netns(host))), None)

    def record(self, role: str) -> ProcessRecord:
        """The newest process of a role: `agent h1`, `controller ctl`, `nats-server ctl`."""
        return [row for row in LabFolder.of(self.name).load().processes if row.role == role][-1]

    async def kill(self, role: str) -> None:
        """kill -9, and wait until it is gone."""
        record = self.record(role)
        os.kill(record.pid, signal.SIGKILL)
        await until(lambda: not record.alive, f"the end of {role}")

    async def restart(self, role: str) -> None:
        """Start a killed agent or controller again, with its configuration, and wait until it is ready."""
        folder = LabFolder.of(self.name)
        log = folder.logs / f"{role.replace(' ', '-')}.log"

        def said() -> int:
            return log.read_bytes().count(b" is ready: ")

        before = said()
        await services.Programs(folder, folder.load()).restart(role)
        await until(lambda: said() > before, f"{role} to be ready")

    async def restart_bus(self) -> None:
        """Start a killed nats-server again, at the address that it had."""
        folder = LabFolder.of(self.name)
        now = folder.load()
        tls = TlsFiles.in_folder(folder.controller / "pki")
        await services.start_bus(folder, now.plan, tls, services.Programs(folder, now))

    async def online(self, *hosts: str) -> None:
        """Wait until the controller says that these hosts are online."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                rows = [row async for row in self.client.items("host.list")]
            except SeraiError:
                rows = []
            if set(hosts) <= {row.name for row in rows if row.status.state is HostState.ONLINE}:
                return
            assert time.monotonic() < deadline, [(row.name, row.status.state) for row in rows]
            await asyncio.sleep(0.1)

    async def in_precopy(self, vm: Vm, to: str) -> None:
        """Wait until a move sends the guest's memory."""

        def moving() -> bool:
            record = journal(self.name, str(vm.status.host), "vm", vm.id)
            return record is not None and record["outgoing"] is not None

        await until(moving, "the source's agent to start the move")
        (pid,) = self.qemus(vm)[to]
        before = received(pid)
        await until(lambda: received(pid) > before + SOME_STATE, "the state's first bytes")

    def watch(self, vm: Vm) -> Watch:
        """Holds the VM to the invariant for as long as it is entered."""
        plan = LabFolder.of(self.name).load().plan

        async def told() -> str | None:
            try:
                status = (await self.vm(vm.name)).status
            except SeraiError:
                return None
            if status.state in GOING_ON:
                return None
            return "it is paused" if status.state is VmState.PAUSED else status.reason or None

        return Watch(
            lambda: {pid for host in plan.hosts for pid in qemus_in(plan.netns(host), vm.id)},
            lambda: recorded(self.name, plan.hosts, vm.id),
            told,
        )


def serai_program() -> list[str]:
    """The argv of the command line."""
    return [sys.executable, "-m", "serai.app.cli.main"]


def qemus_in(netns: str, vm: str) -> list[int]:
    """QEMU processes of a VM in a namespace."""
    found = []
    for pid in namespace.processes_in(netns):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if line[0].startswith(b"qemu-system") and any(word.startswith(f"guest={vm},".encode()) for word in line):
            found.append(pid)
    return found


@contextlib.contextmanager
def standing() -> Iterator[str]:
    """A lab with a folder and a context file of its own, and the tiny image on h1; its name. Not in an event loop."""
    with (
        tempfile.TemporaryDirectory(prefix="serai-main-", dir="/var/tmp") as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(state.ENV_PARENT, f"{place}/labs")
        patch.setenv(contexts.ENV_FILE, f"{place}/contexts.yaml")
        world = LabWorld(Path(place))
        name = world.name()
        try:
            asyncio.run(_up(name))
            yield name
        finally:
            world.remember()
            asyncio.run(down(name))
            # Whom `serai vm ssh` has met is kept beside the contexts: it is the user's.
            (Path(place) / "known_hosts").unlink(missing_ok=True)
            left = world.left()
            world.forget()
        assert left == NOTHING, left


async def _up(name: str) -> None:
    await up(name, 3, link_rate=LINK_RATE)
    async with Client(contexts.resolve(name)[1]) as client:
        spec = ImageSpec(source=ImageSource.BUILD, recipe="tiny")
        job = await client.call("image.create", body=ImageCreate(name="tiny", spec=spec, host=HostName("h1")))
        ended = await client.wait_job(job.id)
        assert ended.state is JobState.DONE, ended.error
