"""The VMs of a host: found by commands, adopted by a new agent, given up with their lease."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.unit.host.ground import OTHER, VM, Ground, Host, make_launch, vm_start

from serai.drivers.hypervisor.base import HostResources, RunState
from serai.drivers.hypervisor.fake import FakeMachine
from serai.schema.commands.vm import VM_PAUSE, VM_RELEASE, VM_START, VM_STOP, ReleaseVm, SignalVm, StopVm
from serai.schema.errors import StaleError, UnavailableError
from serai.schema.ids import VmId
from serai.schema.launch import Launch
from serai.schema.lease import Claim
from serai.schema.vm import RestartPolicy, VmState


async def test_a_stale_epoch_starts_nothing(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", epoch=3)
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=3))
    for epoch in (1, 3):
        with pytest.raises(StaleError):
            await ground.run_vm("h1", epoch=epoch)
    assert h1.store.vm(VM) is None
    assert (await ground.run_vm("h1", epoch=4)).epoch == 4


async def test_a_release_that_races_a_start_leaves_no_qemu(ground: Ground, h1: Host) -> None:
    answers = h1.hold_start()
    starting = asyncio.create_task(ground.send("h1", VM_START, vm_start()))
    await ground.until(h1.processes, ticking=False)
    releasing = asyncio.create_task(ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1)))
    await ground.turn()
    assert not releasing.done(), "its QEMU is there"
    answers.set()
    await releasing
    assert (h1.processes(), h1.store.vm(VM), h1.store.claim(VM, 1)) == ([], None, Claim.RELEASED)
    await starting
    assert (h1.processes(), h1.vms.find(VM)) == ([], None)


@pytest.mark.parametrize("epoch", [1, 2])
async def test_a_start_that_waits_for_a_release_starts_nothing_without_a_record(
    ground: Ground, h1: Host, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """It is refused, or under a later epoch begins once the VM is gone."""
    await ground.run_vm("h1")
    gone, quit_qemu = asyncio.Event(), FakeMachine.quit

    async def slow(self: FakeMachine, timeout: float) -> None:
        await gone.wait()
        await quit_qemu(self, timeout)

    monkeypatch.setattr(FakeMachine, "quit", slow)
    releasing = asyncio.create_task(ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1)))
    await ground.turn()
    assert h1.store.claim(VM, 1) is Claim.RELEASED, "the journal says so first"
    starting = asyncio.create_task(ground.run_vm("h1", epoch=epoch))
    await ground.turn()
    gone.set()
    await releasing
    if epoch == 1:
        with pytest.raises(StaleError):
            await starting
        assert not h1.processes()
    else:
        assert (await starting).epoch == 2
        assert h1.process().launch == make_launch(epoch=2)
        record = h1.store.vm(VM)
        assert record is not None
        assert record.epoch == 2


async def test_claims_are_read_again_before_the_first_instruction(ground: Ground, h1: Host) -> None:
    answers = h1.hold_start()
    starting = asyncio.create_task(ground.run_vm("h1"))
    await ground.until(h1.processes, ticking=False)
    h1.store.give_up(VM, 1, "by another way")
    answers.set()
    with pytest.raises(StaleError, match="may not run"):
        await starting
    assert (ground.most, h1.processes()) == (0, [])


async def test_an_agent_that_is_killed_amid_a_release_finishes_it(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    h1.die_after(1)
    with contextlib.suppress(UnavailableError):
        await ground.send("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1))
    await ground.until(lambda: not h1.up, ticking=False)
    assert h1.processes()
    await h1.restart()
    await ground.until(lambda: not h1.processes())
    assert (h1.store.vm(VM), h1.store.claim(VM, 1)) == (None, Claim.RELEASED)


async def test_released_nothing_stays(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    for folder in (h1.paths.vm_run(VM), h1.paths.vm_state(VM)):
        folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1, reason="deleted"))
    assert not h1.processes()
    assert h1.store.claim(VM, 1) is Claim.RELEASED
    assert not h1.paths.vm_run(VM).exists()
    assert not h1.paths.vm_state(VM).exists()


async def test_what_runs_without_a_record_is_told_and_ends_with_its_release(
    ground: Ground, h1: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Its journal was moved away; the QEMU goes on, and may not answer."""
    await ground.run_vm("h1")
    process = h1.process()
    process.silent = True
    await h1.kill()
    h1.paths.journal.unlink()
    with caplog.at_level("ERROR", "serai"):
        await h1.start()
    assert f"VM {VM} runs here as process {process.pid}" in caplog.text
    assert process.alive
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1, reason="deleted"))
    assert not h1.processes()
    assert not h1.paths.vm_run(VM).exists()
    assert h1.store.claim(VM, 1) is Claim.RELEASED


async def test_a_late_release_ends_nobody_elses_qemu(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", epoch=2)
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1))
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VmId("f" * 12), epoch=9))
    assert h1.process().alive


async def test_a_running_and_a_paused_vm_are_adopted(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    process = h1.process()
    await h1.restart()
    assert (h1.process(), h1.state()) == (process, VmState.RUNNING)
    await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM))
    await h1.restart()
    assert (h1.process().state, h1.state()) == (RunState.PAUSED, VmState.PAUSED)


async def test_a_silent_qemu_is_asked_until_it_answers(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    process = h1.process()
    process.silent = True
    await h1.restart()
    reply = await ground.send("h1", VM_START, vm_start())
    assert reply.error is not None
    assert reply.error.code == "unavailable"
    process.silent = False
    await ground.until(lambda: h1.vms.find(VM))
    assert (await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM))).state is VmState.PAUSED
    assert h1.process() is process


async def test_a_reboot_starts_vms_in_their_order(ground: Ground, h1: Host) -> None:
    ids = [f"{number:012x}" for number in range(1, 5)]
    for vm, order in zip(ids, (3, 1, 2, 0), strict=True):
        launch = make_launch(vm=VmId(vm), name=f"vm{order}")
        await ground.run_vm("h1", launch=launch, autostart_order=order, autostart=order != 0)
    started: list[str] = []
    begin = h1.hypervisor.start

    async def note(launch: Launch, resources: HostResources, *, incoming: bool, paused: bool) -> FakeMachine:
        started.append(launch.name)
        return await begin(launch, resources, incoming=incoming, paused=paused)

    h1.hypervisor.start = note  # type: ignore[method-assign] # to see the order
    await h1.power_cycle()
    await ground.until(lambda: len(started) == 3)
    assert started == ["vm1", "vm2", "vm3"]
    assert h1.state(VmId(ids[3])) is VmState.CRASHED
    assert h1.reason(VmId(ids[3])) == "its host was rebooted"


async def test_a_silent_qemu_ends_by_force_and_stays_down(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    process = h1.process()
    process.silent = True
    await h1.restart()
    stopped = await ground.ask("h1", VM_STOP, StopVm(vm=VM, force=True))
    assert (stopped.state, process.alive) == (VmState.STOPPED, False)
    await ground.turn()
    assert not h1.processes()
    assert not h1.vms.silent()


async def test_a_silent_qemu_ends_with_the_release_of_its_lease_and_not_of_an_older_one(
    ground: Ground, h1: Host
) -> None:
    await ground.run_vm("h1", epoch=2)
    h1.process().silent = True
    await h1.restart()
    refused = await ground.send("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1))
    assert refused.error is not None
    assert "does not answer" in refused.error.message
    assert h1.processes()
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=2, reason="stopped by force"))
    assert not h1.processes()
    assert h1.store.claim(VM, 2) is Claim.RELEASED
    assert h1.store.vm(VM) is None


async def test_whether_an_adopted_vm_has_a_guest_agent_is_looked_for(ground: Ground, h1: Host) -> None:
    await ground.run_two()
    h1.process().guest_agent_open = True
    ground.reports.clear()
    await h1.restart()
    assert {report.vm: report.guest_agent for report in h1.vms.reports()} == {VM: True, OTHER: False}
    await ground.until(lambda: any(report.vm == VM and report.guest_agent for report in ground.reports))
