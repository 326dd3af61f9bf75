"""`serai up` in a network namespace of its own: one machine, its VMs outliving the process however it ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serai.client.context import Context
from serai.client.http import Client
from serai.lib import namespace, process
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.lib.pki import CertificateAuthority, TlsFiles, qemu_folder
from serai.schema.errors import SeraiError
from serai.schema.host import Host
from serai.schema.ids import ImageId, NetworkId, PoolId, VolumeId
from serai.schema.image import ImageCreate, ImageSource, ImageSpec
from serai.schema.job import Job, JobState
from serai.schema.vm import DiskSpec, Vm, VmCreate, VmSpec, VmState, VnicSpec
from serai.schema.volume import VolumeCreate, VolumeSpec

PATIENCE = 90.0


@dataclass
class Machine:
    """A machine with one `serai up`."""

    netns: str
    folder: Path
    child: process.Child | None = None
    log: Path = field(default_factory=Path)

    async def start(self, *more: str) -> None:
        self.log = self.folder / f"log-{new_id()}"
        argv = [*namespace.enter_argv(self.netns), sys.executable, "-m", "serai.app.cli.main", "up", "--name", "solo"]
        argv += ["--state", str(self.folder / "s"), "--run", str(self.folder / "r"), *more]
        env = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        self.child = await process.spawn(argv, stdout=self.log, stderr=self.log, env=env)
        deadline = time.monotonic() + PATIENCE
        while "serai is ready" not in self.log.read_text():
            assert self.child.alive, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.1)

    def warned(self) -> bool:
        """This start has said that guests run emulated, and why."""
        lines = self.log.read_text().splitlines()
        return any("level=warning" in line and "kvm: " in line and "emulated (TCG)" in line for line in lines)

    async def end(self, number: signal.Signals) -> None:
        assert self.child is not None
        self.child.send_signal(number)
        await self.child.exited()

    def client(self) -> Client:
        return Client(Context(socket=self.folder / "r/api.sock", token_file=self.folder / "r/api.token"))

    async def answers(self, address: str) -> None:
        """Wait until the guest is reached."""
        deadline = time.monotonic() + PATIENCE
        argv = [*namespace.enter_argv(self.netns), "ping", "-c1", "-W1", address]
        while (await process.run(argv, check=False)).returncode != 0:
            assert time.monotonic() < deadline, f"{address} does not answer"


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    name = f"serai-test-{new_id()[:6]}"
    with tempfile.TemporaryDirectory(prefix="serai-up-", dir="/var/tmp") as place:
        Path(place).chmod(0o711)
        await namespace.create(name)
        found = Machine(name, Path(place))
        try:
            yield found
        finally:
            for pid in namespace.processes_in(name):
                watched = process.adopt(pid, expect="")
                if watched is not None:
                    await watched.kill()
            await namespace.delete(name)


async def done(client: Client, job: Job) -> None:
    ended = await client.wait_job(job.id)
    assert ended.state is JobState.DONE, ended.error


async def test_a_vm_outlives_it_however_it_ends(machine: Machine) -> None:
    await machine.start()
    async with machine.client() as client:
        image = ImageCreate(name="tiny", spec=ImageSpec(source=ImageSource.BUILD, recipe="tiny"))
        await done(client, await client.call("image.create", body=image))
        spec = VmSpec(
            image=ImageId("tiny"),
            memory=128 << 20,
            disks=[DiskSpec(pool=PoolId("local"), size=16 << 20)],
            vnics=[VnicSpec(network=NetworkId("default"))],
        )
        await done(client, await client.call("vm.create", body=VmCreate(name="v1", spec=spec)))
        vm: Vm = await client.call("vm.show", "v1")
        host: Host = await client.call("host.show", "solo")
        assert host.status.facts is not None
        assert machine.warned() is (host.status.facts.accel == "tcg")
        address = str(vm.spec.vnics[0].ip)
        await machine.answers(address)
    for how in (signal.SIGTERM, signal.SIGKILL):
        await machine.end(how)
        await machine.answers(address)
        await machine.start()
        async with machine.client() as client:
            again: Vm = await client.call("vm.show", "v1")
            assert (again.status.state, again.status.pid) == (VmState.RUNNING, vm.status.pid)
        assert machine.warned() is (host.status.facts.accel == "tcg")
    async with machine.client() as client:
        with pytest.raises(SeraiError):
            await client.call("pool.delete", "local")
        await done(client, await client.call("vm.delete", "v1", query={"force": True}))
    await machine.end(signal.SIGTERM)
    assert machine.child is not None
    assert machine.child.returncode == 0
    assert namespace.processes_in(machine.netns) == []


async def test_old_certificates_are_renewed(machine: Machine) -> None:
    await machine.start()
    await machine.end(signal.SIGTERM)
    state = machine.folder / "s"
    old = datetime.now(UTC) - timedelta(days=600)
    authority = CertificateAuthority.load(state / "controller/ca", clock=ManualClock(old))
    pki = state / "pki"
    files = [TlsFiles.in_folder(folder) for folder in (pki, qemu_folder(pki), state / "controller/pki")]
    for tls in files:
        authority.renew(tls)
    await machine.start()
    deadline = time.monotonic() + PATIENCE
    while any(tls.expires < datetime.now(UTC) + timedelta(days=700) for tls in files):
        assert time.monotonic() < deadline, machine.log.read_text()
        await asyncio.sleep(0.1)
    async with machine.client() as client:
        found = [event.resource async for event in client.items("event.list", {"kind": "certificate.renewed"})]
    assert sorted(found) == ["certificate/controller", "host/solo", "host/solo"]


async def test_without_a_sandbox_no_vm_starts_unless_that_is_allowed(machine: Machine) -> None:
    """A QEMU that says that it has none is found first; the real one is started where that is allowed."""
    script = machine.folder / "bin/qemu-system-x86_64"
    script.parent.mkdir(mode=0o755)
    refuses = 'case "$*" in *-sandbox*) echo "-sandbox support is not enabled" >&2; exit 1;; esac'
    script.write_text(f'#!/bin/sh\n{refuses}\nexec {shutil.which(script.name)} "$@"\n')
    script.chmod(0o755)
    body = VmCreate(name="v1", spec=VmSpec(memory=64 << 20, disks=[DiskSpec(volume=VolumeId("d1"))]))
    await machine.start()
    assert "no VM is started" in machine.log.read_text()
    async with machine.client() as client:
        volume = VolumeCreate(name="d1", spec=VolumeSpec(pool=PoolId("local"), size=1 << 20))
        await done(client, await client.call("volume.create", body=volume))
        with pytest.raises(SeraiError, match="starts no VMs: QEMU does not start in its sandbox"):
            await client.call("vm.create", body=body)
    await machine.end(signal.SIGTERM)
    await machine.start("--allow-unsandboxed")
    assert "VMs run without it" in machine.log.read_text()
    async with machine.client() as client:
        await done(client, await client.call("vm.create", body=body))
        vm: Vm = await client.call("vm.show", "v1")
        assert b"-sandbox" not in Path(f"/proc/{vm.status.pid}/cmdline").read_bytes()
        await done(client, await client.call("vm.delete", "v1", query={"force": True}))


async def test_a_second_one_is_refused(machine: Machine) -> None:
    await machine.start()
    first = machine.child
    with pytest.raises(AssertionError) as caught:
        await machine.start()
    assert "Traceback" not in str(caught.value)
    assert first is not None
    assert first.alive
