"""`vm.migrate`: the VM goes on elsewhere, and nothing of it is lost."""

from __future__ import annotations

import stat

import pytest
from tests.support.lab import Lab

from bench.workload import TcpEcho
from serai.lab.probe import Prober
from serai.lab.state import LabFolder
from serai.lib.pki import TlsFiles
from serai.schema.errors import ConflictError, NotFoundError, SeraiError
from serai.schema.job import JobState
from serai.schema.vm import VmState, VmStop


async def test_a_running_vm_moves_with_all_that_is_its_own(lab: Lab) -> None:
    vm = await lab.create()
    guest = lab.guest(vm)
    boot_id = await guest.boot_id()
    await guest.write_disk()
    async with lab.watch(vm), TcpEcho(lab.name, guest.address) as echo:
        await echo.more(2)
        async with await Prober.start(lab.name, guest.address) as prober:
            await prober.answered()
            job = await lab.done(await lab.migrate(vm.name, "h2"))
            await echo.more(2)
            seen = await prober.stop()
        echo.check()
    after = await lab.vm(vm.name)
    assert (after.status.host, after.status.state) == ("h2", VmState.RUNNING)
    assert after.spec.vnics == vm.spec.vnics
    assert await guest.boot_id() == boot_id
    disk = await guest.stop_disk()
    assert disk.errors == 0
    assert disk.verified > 0
    assert {host: len(pids) for host, pids in lab.qemus(vm).items()} == {"h1": 0, "h2": 1, "h3": 0}
    assert job.result is not None
    assert {"mode", "total_s", "downtime_ms", "rounds", "bytes_sent", "phases"} <= job.result.keys()
    assert job.result["rounds"] >= 1
    assert job.result["bytes_sent"] > 1 << 20
    assert seen.received > 0
    assert after.status.epoch == vm.status.epoch + 1


def test_qemus_own_certificate_is_not_the_hosts(lab: Lab) -> None:
    folder = LabFolder.of(lab.name)
    plan = folder.load().plan
    for host in plan.hosts:
        pki = folder.host(host) / "state/pki"
        theirs = TlsFiles(*(pki / "qemu" / f"{name}.pem" for name in ("ca-cert", "client-cert", "client-key")))
        assert theirs.identity == f"qemu.{host}"
        assert theirs.key.read_bytes() not in TlsFiles.in_folder(pki).key.read_bytes()
        others = list(pki.rglob("identity.pem"))
        assert len(others) == 2
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in others)


async def test_there_and_back_and_on(lab: Lab) -> None:
    vm = await lab.create()
    async with lab.watch(vm):
        for to in ("h2", "h1", "h3", "h2"):
            await lab.done(await lab.migrate(vm.name, to))
            assert (await lab.vm(vm.name)).status.host == to
    assert await lab.guest(vm).uptime() > 0


async def test_refusals_change_nothing(lab: Lab) -> None:
    vm = await lab.create()
    with pytest.raises(ConflictError) as same:
        await lab.migrate(vm.name, "h1")
    assert (same.value.info.field, same.value.info.value) == ("to", "h1")
    assert same.value.info.remedy
    with pytest.raises(NotFoundError):
        await lab.migrate(vm.name, "h9")
    job = await lab.migrate(vm.name, "h2")
    with pytest.raises(SeraiError) as second:
        await lab.migrate(vm.name, "h3")
    assert second.value.info.remedy
    await lab.done(job)
    with pytest.raises(ConflictError):
        await lab.client.call("vm.delete", vm.name)
    assert (await lab.vm(vm.name)).status.host == "h2"


async def test_cancel_leaves_it_where_it_was(lab: Lab) -> None:
    # 100 MB at 200 MB/s never converges over 1 Gbit/s: the move is in pre-copy until it is cancelled.
    vm = await lab.create(memory=256 << 20, cmdline="serai.mem=300:150")
    async with lab.watch(vm):
        job = await lab.migrate(vm.name, "h2")
        await lab.in_precopy(vm, "h2")
        await lab.client.call("job.cancel", job.id)
        ended = await lab.client.wait_job(job.id)
        assert ended.state is JobState.CANCELLED, ended
    after = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
    assert after.status.host == "h1"
    assert {host: len(pids) for host, pids in lab.qemus(vm).items()} == {"h1": 1, "h2": 0, "h3": 0}
    await lab.guest(vm).stop_memory()
    await lab.done(await lab.migrate(vm.name, "h2"))


@pytest.mark.parametrize("verb", ["stop", "delete"])
async def test_force_ends_a_move_that_never_converges(lab: Lab, verb: str) -> None:
    vm = await lab.create(memory=256 << 20, cmdline="serai.mem=300:150")
    move = await lab.migrate(vm.name, "h2")
    await lab.until(vm.name, lambda now: now.status.state is VmState.MIGRATING)
    body, query = (VmStop(force=True), None) if verb == "stop" else (None, {"force": True})
    await lab.done(await lab.client.call(f"vm.{verb}", vm.name, body, query))
    assert (await lab.client.wait_job(move.id)).state is JobState.CANCELLED
    assert not any(lab.qemus(vm).values())
    if verb == "stop":
        assert (await lab.vm(vm.name)).status.state is VmState.STOPPED
