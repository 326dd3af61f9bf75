"""A guest whose disk is at a real iSCSI target: it boots from it, admitted by epoch, and moves with it."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from serai.drivers.hypervisor import record
from serai.drivers.hypervisor.base import HostResources, MachineEvent, MigrationSetup
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.drivers.storage.iscsi import TgtExporter
from serai.lib.ids import new_id
from serai.lib.paths import HostPaths
from serai.schema.errors import HostError
from serai.schema.ids import HostName, VmId, VolumeId
from serai.schema.launch import Admission, Disk, IscsiDisk, Launch

DEADLINE = 60.0
MIB = 1 << 20
# Enables the power button, says R on the console, and powers off once the button was pressed.
BUTTON = "ba0206 b80001 ef baf803 b052 ee fb f4 ba0006 ed f6c401 74f6 ba0406 b80020 ef f4 ebfd"
SETUP = MigrationSetup(
    {"events": True, "pause-before-switchover": False, "return-path": False},
    downtime_limit_ms=300,
    bandwidth_bytes=0,
    tls_hostname=None,
)


class Storage:
    """One exported volume, and who may use it."""

    def __init__(self, folder: Path) -> None:
        self.volume = new_id()
        self.file = folder / "volume.raw"
        self.file.write_bytes((bytes.fromhex(BUTTON).ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0"))
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port = int(trial.getsockname()[1])
        self.exporter = TgtExporter(HostPaths(folder / "state", folder / "run"), "127.0.0.1", self.port)

    async def admit(self, epoch: int) -> Disk:
        name = f"iqn.2026-01.io.serai:vm.aabbccddeeff.{epoch}"
        admission = Admission(
            vm=VmId("aabbccddeeff"),
            epoch=epoch,
            host=HostName("h1"),
            initiator=name,
            user=f"vm-{epoch}",
            password=SecretStr(f"secret-of-epoch-{epoch}"),
        )
        export = await self.exporter.export(self.volume, self.file)
        await self.exporter.admit(self.volume, admission)
        source = IscsiDisk(
            volume=VolumeId(self.volume),
            portal=f"127.0.0.1:{self.port}",
            target=export.target_iqn,
            lun=export.lun,
            initiator=name,
            user=admission.user,
            password=admission.password,
        )
        return Disk(index=0, name="root", size=MIB, source=source)


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    # Not pytest's folder: the path of a socket has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="serai-") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path
        for run_dir in path.glob("vms/*/*/"):
            runtime = record.read(run_dir)
            process = None if runtime is None else record.find(runtime)
            if process is not None:
                await process.kill()


@pytest.fixture
async def storage(folder: Path) -> AsyncIterator[Storage]:
    made = Storage(folder)
    await made.exporter.start()
    yield made
    await made.exporter.stop()


async def launch(hypervisor: QemuHypervisor, disk: Disk) -> Launch:
    facts = await hypervisor.facts()
    return Launch(
        vm=new_id(VmId),
        name="guest",
        generation=1,
        machine=facts.machine_types[0],
        accel="tcg",
        cpus=1,
        max_cpus=1,
        memory=32 * MIB,
        uuid=str(uuid.uuid4()),
        disks=[disk],
    )


async def test_boots_and_moves_from_epoch_to_epoch(folder: Path, storage: Storage) -> None:
    hypervisor = QemuHypervisor(folder / "state")
    first = await launch(hypervisor, await storage.admit(1))
    places = [HostResources(run_dir=folder / "vms" / end / first.vm, cgroup=None) for end in ("one", "two")]
    source = await hypervisor.start(first, places[0], incoming=False, paused=True)
    reader, writer = await asyncio.open_unix_connection(str(source.run_dir / "console.sock"))
    await source.cont()
    async with asyncio.timeout(DEADLINE):
        await reader.readuntil(b"R")
    writer.close()
    await writer.wait_closed()
    said = Path(f"/proc/{source.pid}/cmdline").read_bytes() + Path(f"/proc/{source.pid}/environ").read_bytes()
    assert b"secret-of-epoch" not in said
    assert not list(source.run_dir.glob("*.chap"))

    second = first.model_copy(update={"disks": [await storage.admit(2)]})
    target = await hypervisor.start(second, places[1], incoming=True, paused=True)
    arrived: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_event(event: MachineEvent) -> None:
        status = str(event.data.get("status"))
        if event.name == "MIGRATION" and status in ("completed", "failed") and not arrived.done():
            arrived.set_result(status)

    target.subscribe(on_event)
    await source.migrate("127.0.0.1", await target.prepare_incoming(SETUP, "127.0.0.1", (49652, 49699)), SETUP)
    async with asyncio.timeout(DEADLINE):
        assert await arrived == "completed", record.log_tail(target.run_dir)
    await target.cont()
    await source.quit(10)
    await source.close()
    await target.powerdown()
    async with asyncio.timeout(DEADLINE):
        assert (await target.ended()).shutdown == "guest-shutdown"
    await target.close()


async def test_the_wrong_secret(folder: Path, storage: Storage) -> None:
    disk = await storage.admit(1)
    assert isinstance(disk.source, IscsiDisk)
    wrong = disk.source.model_copy(update={"password": SecretStr("not-the-secret-at-all")})
    hypervisor = QemuHypervisor(folder / "state")
    wanted = await launch(hypervisor, disk.model_copy(update={"source": wrong}))
    with pytest.raises(HostError) as caught:
        await hypervisor.start(
            wanted, HostResources(run_dir=folder / "vms" / "one" / wanted.vm, cgroup=None), incoming=False, paused=True
        )
    assert "not-the-secret" not in str(caught.value)
