"""QEMU itself: what it runs as, what it is refused, TLS between two ends, devices plugged in."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import pwd
import signal
import struct
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from tests.support.bootsectors import boot_sector, filler, says_ready
from tests.support.way import Way

from serai.drivers.hypervisor import hotplug, record
from serai.drivers.hypervisor.base import HostResources, MachineEvent, MigrationSetup, RunState
from serai.drivers.hypervisor.kvm import KNOWN_END, probe_kvm, run_guest
from serai.drivers.hypervisor.machine import QemuMachine
from serai.drivers.hypervisor.probe import probe
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.lib.ids import new_id
from serai.lib.pki import CertificateAuthority, TlsFiles, qemu_folder, write_qemu_folder
from serai.schema.errors import HostError, SeraiError, UnavailableError
from serai.schema.ids import PoolId, VolumeId
from serai.schema.launch import Disk, FileDisk, IscsiDisk, Launch, VnicAttachment

USER = "serai-qemu"
DEADLINE = 60.0
MIB = 1 << 20
CAPABILITIES = {"events": True, "pause-before-switchover": False, "return-path": False}
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
TAP_WITH_HEADERS = 0x0002 | 0x1000 | 0x4000


class Host:
    """A place to run VMs in, cleared afterwards, also where a test failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hypervisor = QemuHypervisor(folder / "state")
        self._machines: list[QemuMachine] = []

    async def launch(self, **changes: Any) -> Launch:
        facts = await self.hypervisor.facts()
        values: dict[str, Any] = {
            "vm": new_id(),
            "name": "guest",
            "generation": 1,
            "machine": facts.machine_types[0],
            "accel": "tcg",
            "cpus": 1,
            "max_cpus": 1,
            "memory": 32 * MIB,
            "uuid": str(uuid.uuid4()),
        }
        return Launch.model_validate(values | changes)

    def resources(self, launch: Launch, end: str = "one", **more: Any) -> HostResources:
        return HostResources(run_dir=self.folder / end / launch.vm, cgroup=None, **more)

    async def start(self, launch: Launch, end: str = "one", **more: Any) -> QemuMachine:
        """Paused; at the end `two` as the destination of a move."""
        resources = self.resources(launch, end, **more)
        machine = await self.hypervisor.start(launch, resources, incoming=end == "two", paused=True)
        self._machines.append(machine)
        return machine

    async def close(self) -> None:
        for machine in self._machines:
            await over(machine)
        # What a start that failed or was cancelled has left.
        for run_dir in self.folder.glob("*/*/"):
            runtime = record.read(run_dir)
            process = None if runtime is None else record.find(runtime)
            if process is not None:
                await process.kill()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    # Not pytest's folder: the path of a socket has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="serai-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        host = Host(folder)
        try:
            yield host
        finally:
            await host.close()


async def over(machine: QemuMachine) -> None:
    await machine.kill()
    await machine.ended()
    await machine.close()


def status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


async def test_its_log_is_bounded_while_it_runs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serai.drivers.hypervisor.machine.LOG_LOOK", 0.01)
    machine = await host.start(await host.launch())
    log = machine.run_dir / record.LOG
    with log.open("ab") as file:
        file.write(b"x" * (record.LOG_MAX + 1) + b"\nthe reason\n")
    async with asyncio.timeout(DEADLINE):
        while log.stat().st_size > record.LOG_MAX:
            await asyncio.sleep(0.01)
    await machine.kill()
    assert (await machine.ended()).log_tail.endswith("the reason\n")
    await machine.close()


# --- what it runs as --------------------------------------------------------------------------------------------------


async def test_runs_as_nobody_special_in_a_sandbox(host: Host) -> None:
    machine = await host.start(await host.launch())
    user = pwd.getpwnam(USER)
    said = status(machine.pid)
    assert said["Uid"] == [str(user.pw_uid)] * 4
    assert said["Gid"] == [str(user.pw_gid)] * 4
    assert said["Groups"] == []
    assert said["Seccomp"] == ["2"]
    assert int(said["CapEff"][0], 16) == 0
    assert os.getsid(machine.pid) == machine.pid
    assert machine.run_dir.stat().st_mode & 0o777 == 0o710
    for name in (*record.SOCKETS, record.FILE):
        assert (machine.run_dir / name).stat().st_mode & 0o777 == 0o600
        assert (machine.run_dir / name).stat().st_uid == 0
    await over(machine)
    assert not any((machine.run_dir / name).exists() for name in (*record.SOCKETS, record.FILE))


async def test_why_it_could_not_start(host: Host) -> None:
    launch = await host.launch(machine="pc-q35-99.0")
    with pytest.raises(HostError) as caught:
        await host.start(launch)
    assert "pc-q35-99.0" in caught.value.info.message
    assert await host.hypervisor.adopt(launch.vm, host.resources(launch).run_dir) is None


async def test_a_file_that_is_not_there(host: Host) -> None:
    disk = Disk(index=0, name="root", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)))
    launch = await host.launch(disks=[disk])
    with pytest.raises(HostError) as caught:
        await host.start(launch, disks={0: host.folder / "none.raw"})
    assert caught.value.info.value == str(host.folder / "none.raw")


async def test_target_that_does_not_answer_and_its_secret(host: Host) -> None:
    source = IscsiDisk(
        volume=new_id(VolumeId),
        portal="127.0.0.1:1",
        target="iqn.2025-01.org.serai:none",
        lun=1,
        initiator="iqn.2025-01.org.serai:vm",
        user="vm",
        password=SecretStr("a-secret-of-16-ch"),
    )
    launch = await host.launch(disks=[Disk(index=0, name="root", size=MIB, source=source)])
    with pytest.raises(HostError) as caught:
        await host.start(launch)
    assert "iSCSI" in caught.value.info.message
    assert "a-secret" not in str(caught.value)
    assert [path.name for path in host.resources(launch).run_dir.iterdir() if path.name.endswith(".chap")] == []


async def test_cancelled_start_leaves_nothing(host: Host) -> None:
    await host.hypervisor.facts()
    launch = await host.launch()
    task = asyncio.create_task(host.start(launch))
    run_dir = host.resources(launch).run_dir
    async with asyncio.timeout(DEADLINE):
        while (runtime := record.read(run_dir)) is None:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert record.find(runtime) is None


# --- migration with TLS -----------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(host: Host) -> dict[str, Path]:
    """QEMU's folders of two hosts and of a stranger with a CA of its own."""
    folders = {}
    gid = pwd.getpwnam(USER).pw_gid
    for name, ca in (("h1", "ca"), ("h2", "ca"), ("stranger", "other")):
        authority = CertificateAuthority.ensure(host.folder / ca)
        pki = host.folder / "pki" / name
        authority.issue_host("h1" if name == "stranger" else name, pki)
        folders[name] = write_qemu_folder(TlsFiles.in_folder(qemu_folder(pki)), host.folder / f"qemu-{name}", gid)
    return folders


class Outcome:
    """The last MIGRATION status of a machine."""

    def __init__(self, machine: QemuMachine) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        machine.subscribe(self._on_event)

    def _on_event(self, event: MachineEvent) -> None:
        said = event.data.get("status")
        if event.name == "MIGRATION" and said in ("completed", "failed") and not self.ended.done():
            self.ended.set_result(str(said))


def setup(peer: str) -> MigrationSetup:
    return MigrationSetup(CAPABILITIES, downtime_limit_ms=300, bandwidth_bytes=0, tls_hostname=peer)


async def finalized(source: QemuMachine) -> RunState:
    """Its run state once QEMU is through with the migration: `completed` comes a moment before that."""
    async with asyncio.timeout(DEADLINE):
        while (state := await source.run_state()) is RunState.FINISH_MIGRATE:
            await asyncio.sleep(0.01)
    return state


async def move(
    host: Host, source_tls: Path, target_tls: Path, expects: str, believes: str, *, then_cont: bool = False
) -> tuple[str, RunState]:
    """Move a VM where the destination `expects` an identity and the source `believes` in a name; how it ended.

    `then_cont`: the source goes on as soon as QEMU says that it is through.
    """
    launch = await host.launch()
    source = await host.start(launch, tls_dir=source_tls)
    await source.cont()
    target = await host.start(launch, "two", tls_dir=target_tls)
    sent = Outcome(source)
    port = await target.prepare_incoming(setup(expects), "127.0.0.1", (49452, 49499))
    async with asyncio.timeout(DEADLINE):
        try:
            await source.migrate("127.0.0.1", port, setup(believes))
            said = await sent.ended
        except SeraiError:
            said = "refused"
    if then_cont:
        await source.cont()
    state = await finalized(source)
    await over(source)
    await over(target)
    return said, state


async def test_moves_with_tls(host: Host, certificates: dict[str, Path]) -> None:
    ends = await move(host, certificates["h1"], certificates["h2"], "qemu.h1", "qemu.h2")
    assert ends == ("completed", RunState.POSTMIGRATE)


async def test_a_source_that_sent_all_can_go_on_at_once(host: Host, certificates: dict[str, Path]) -> None:
    ends = await move(host, certificates["h1"], certificates["h2"], "qemu.h1", "qemu.h2", then_cont=True)
    assert ends == ("completed", RunState.RUNNING)


@pytest.mark.parametrize(
    ("source", "target", "expects", "believes"),
    [
        ("h1", "h2", "qemu.h1", "qemu.h3"),  # the source is led to another host than it was told
        ("stranger", "h2", "qemu.h1", "qemu.h2"),
        ("h1", "stranger", "qemu.h1", "qemu.h2"),
    ],
)
async def test_the_wrong_end(
    host: Host, certificates: dict[str, Path], source: str, target: str, expects: str, believes: str
) -> None:
    said, state = await move(host, certificates[source], certificates[target], expects, believes)
    assert said in ("failed", "refused")
    assert state is RunState.RUNNING


@pytest.mark.parametrize("fits", [True, False], ids=["its state fits into the way", "its state does not"])
async def test_another_host_than_the_source_cannot_send(
    host: Host, certificates: dict[str, Path], *, fits: bool
) -> None:
    """The destination refuses it in any case. What the source's QEMU says of that proves nothing: where all of the
    state is on its way before the refusal comes back, it says `completed`. It stands still then, for a verdict."""
    size = 0 if fits else 2 * Way.takes()
    disk = Disk(index=0, name="root", size=MIB, source=FileDisk(pool=PoolId(new_id()), volume=VolumeId(new_id())))
    launch = await host.launch(disks=[disk], memory=(32 << 20) + size)
    file = host.folder / "disk.raw"
    file.write_bytes(boot_sector(filler(size)).ljust(MIB, b"\0"))
    target = await host.start(launch, "two", tls_dir=certificates["h2"], disks={0: file})
    source = await host.start(launch, tls_dir=certificates["h1"], disks={0: file})
    port = await target.prepare_incoming(setup("qemu.h3"), "127.0.0.1", (49452, 49499))
    sent, received = Outcome(source), Outcome(target)
    async with asyncio.timeout(DEADLINE):
        async with says_ready(source):
            await source.cont()
        async with Way(port, reads_all=fits) as way:
            await source.migrate("127.0.0.1", way.port, setup("qemu.h2"))
            await way.refused.wait()
            if not fits:
                way.reset()
            said = await sent.ended
    assert (said, await finalized(source)) == (
        ("completed", RunState.POSTMIGRATE) if fits else ("failed", RunState.RUNNING)
    )
    assert way.read > way.ENOUGH if fits else way.read <= way.ENOUGH
    assert not received.ended.done() or received.ended.result() == "failed"
    assert await target.run_state() is RunState.INMIGRATE
    # Told what the destination has decided, the source goes on.
    await source.cont()
    assert await source.run_state() is RunState.RUNNING


# --- devices ----------------------------------------------------------------------------------------------------------


def tap_in_its_own_namespace() -> int:
    """A tap in a network namespace that goes with the descriptor."""
    made: list[int] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"tap0", TAP_WITH_HEADERS))
        made.append(descriptor)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def vnic(index: int) -> VnicAttachment:
    return VnicAttachment(index=index, mac=f"52:54:00:00:00:{index:02x}", bridge="br-lan", tap=f"sv-{index}")


async def test_vnics_at_start_and_plugged_in(host: Host) -> None:
    first, second = tap_in_its_own_namespace(), tap_in_its_own_namespace()
    try:
        machine = await host.start(await host.launch(vnics=[vnic(0)]), taps={0: first})
        await machine.attach_vnic(vnic(1), second)
    finally:
        os.close(first)
        os.close(second)
    assert [present.index for present in machine.launch.vnics] == [0, 1]
    await over(machine)


async def test_disk_that_the_guest_keeps(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "UNPLUG_TIMEOUT", 0.2)
    file = host.folder / "disk.raw"
    file.write_bytes(bytes(MIB))
    disk = Disk(index=0, name="root", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)))
    machine = await host.start(await host.launch(disks=[disk]), disks={0: file})
    # Its firmware has not even begun: nobody lets go.
    with pytest.raises(UnavailableError):
        await machine.detach_disk(0)
    assert [present.index for present in machine.launch.disks] == [0]
    await over(machine)


async def test_plugging_in_is_undone_where_it_fails(host: Host) -> None:
    machine = await host.start(await host.launch())
    disk = Disk(
        index=1, name="more", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)), serial="s"
    )
    file = host.folder / "disk.raw"
    file.write_bytes(bytes(MIB))
    holder = Disk(index=1, name="x", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)))
    await machine.attach_disk(holder, file)
    # A second disk on the same file: QEMU's own lock refuses it.
    with pytest.raises(SeraiError):
        await machine.attach_disk(disk.model_copy(update={"index": 2}), file)
    other = host.folder / "other.raw"
    other.write_bytes(bytes(MIB))
    await machine.attach_disk(disk.model_copy(update={"index": 2}), other)
    assert [present.index for present in machine.launch.disks] == [1, 2]
    await over(machine)


async def test_moves_with_what_was_plugged_in(host: Host) -> None:
    file, seed = host.folder / "disk.raw", host.folder / "seed.iso"
    file.write_bytes(bytes(MIB))
    seed.write_bytes(bytes(MIB))
    machine = await host.start(await host.launch(max_cpus=3), seed=seed)
    disk = Disk(index=2, name="more", size=MIB, source=FileDisk(pool=new_id(PoolId), volume=new_id(VolumeId)))
    await machine.attach_disk(disk, file)
    await machine.set_cpus(2)
    target = await host.start(machine.launch, "two", disks={2: file}, seed=seed)
    received = Outcome(target)
    plain = MigrationSetup(CAPABILITIES, downtime_limit_ms=300, bandwidth_bytes=0, tls_hostname=None)
    await machine.cont()
    await machine.migrate("127.0.0.1", await target.prepare_incoming(plain, "127.0.0.1", (49452, 49499)), plain)
    async with asyncio.timeout(DEADLINE):
        assert await received.ended == "completed", record.log_tail(target.run_dir)
    await target.cont()
    assert await target.run_state() is RunState.RUNNING
    await over(machine)
    await over(target)


# --- the probe --------------------------------------------------------------------------------------------------------


async def test_the_test_guest_runs_to_its_end() -> None:
    code, _, words = await run_guest("tcg", USER, DEADLINE)
    assert code == KNOWN_END, words


async def test_kvm_is_answered_one_way_or_the_other() -> None:
    ability = await probe_kvm(USER)
    assert ability.detail
    assert ability.found or ability.remedy


async def test_abilities_for_the_doctor() -> None:
    found = {ability.name: ability for ability in await probe()}
    assert {"qemu", "qemu-sandbox", "live-migration", "kvm", "postcopy", "control-groups"} == set(found)
    assert found["live-migration"].found
    assert found["qemu-sandbox"].found


async def test_signalled_by_the_machine(host: Host) -> None:
    """SIGTERM, as a machine that goes down sends it, ends QEMU at once, with its reason."""
    machine = await host.start(await host.launch())
    await machine.cont()
    os.kill(machine.pid, signal.SIGTERM)
    async with asyncio.timeout(DEADLINE):
        info = await machine.ended()
    assert (info.code, info.shutdown) == (0, "host-signal")
    await machine.close()
