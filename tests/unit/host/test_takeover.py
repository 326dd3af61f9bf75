"""A restarted agent works for all VMs that it can, while one of them does not answer."""

from __future__ import annotations

import asyncio

from serai.host.agent import ADOPTION_PATIENCE
from serai.host.records import CLAIMS_KEPT, GONE_KEPT
from serai.schema.commands.vm import VM_PAUSE, VM_RELEASE, VM_STOP, ReleaseVm, SignalVm, StopVm
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import RestartPolicy, VmState

from .conftest import VM, Ground, Host, make_launch

OTHER = "ba9876543210"


async def two(ground: Ground) -> None:
    await ground.run_vm("h1")
    await ground.run_vm("h1", launch=make_launch(vm=OTHER, name="web2"))


async def test_a_silent_qemu_keeps_nobody_waiting_but_who_asks_for_it(ground: Ground, h1: Host) -> None:
    await two(ground)
    await h1.kill()
    answers = h1.hold_adoption(VM)
    ground.host_reports.clear()
    await h1.start(wait=False)
    report = await ground.ask("h1", VM_PAUSE, SignalVm(vm=OTHER))
    assert report.state is VmState.PAUSED
    pausing = asyncio.create_task(ground.ask("h1", VM_PAUSE, SignalVm(vm=VM)))
    await ground.turn()
    assert not pausing.done()
    # A full report without it would be taken to say that it is not here.
    assert not ground.host_reports
    answers.set()
    assert (await pausing).state is VmState.PAUSED
    await ground.until(lambda: ground.host_reports)
    whole = ground.host_reports[0]
    assert ({one.vm for one in whole.vms}, whole.silent) == ({VM, OTHER}, [])


async def test_the_full_report_does_not_wait_for_ever(ground: Ground, h1: Host) -> None:
    await two(ground)
    await h1.kill()
    h1.hold_adoption(VM)
    ground.host_reports.clear()
    began = ground.clock.monotonic()
    await h1.start(wait=False)
    await ground.until(lambda: ground.host_reports)
    assert ground.clock.monotonic() > began + ADOPTION_PATIENCE
    report = ground.host_reports[0]
    assert ([one.vm for one in report.vms], report.silent) == ([OTHER], [VM])


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
    assert h1.records.claim(VM, 2) is Claim.RELEASED
    assert h1.records.vm(VM) is None


async def test_whether_an_adopted_vm_has_a_guest_agent_is_looked_for(ground: Ground, h1: Host) -> None:
    await two(ground)
    h1.process().guest_answers = {}
    ground.reports.clear()
    await h1.restart()
    assert {vm: agent.guest_agent for vm, agent in h1.vms.agents.items()} == {VM: True, OTHER: False}
    await ground.until(lambda: any(report.vm == VM and report.guest_agent for report in ground.reports))


def test_a_hundred_visits_and_refusals_are_forgotten_in_the_end(h1: Host) -> None:
    for epoch in range(1, 101):
        h1.records.put_claim(LeaseRecord(vm=VM, epoch=epoch, claim=Claim.OFFERED))
        last = (Claim.ABANDONED,) if epoch % 2 else (Claim.COMMITTED, Claim.RELEASED)
        for claim in last:
            h1.records.put_claim(LeaseRecord(vm=VM, epoch=epoch, claim=claim))
        h1.records.prune_leases(VM)
    assert [row.epoch for row in h1.records.leases()] == list(range(101 - CLAIMS_KEPT, 101))


async def test_vms_that_are_deleted_are_forgotten_in_the_end(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    over = GONE_KEPT + 5
    for number in range(over):
        vm = f"{number:012x}"
        h1.records.put_claim(LeaseRecord(vm=vm, epoch=1, claim=Claim.HELD))
        h1.records.put_generation(f"vm/{vm}", 3)
        h1.records.put_claim(LeaseRecord(vm=vm, epoch=1, claim=Claim.RELEASED))
    last = f"{over:012x}"
    h1.records.put_claim(LeaseRecord(vm=last, epoch=1, claim=Claim.OFFERED))
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=f"{over - 1:012x}", epoch=1))
    kept = [f"{number:012x}" for number in range(over - GONE_KEPT, over)]
    assert sorted({row.vm for row in h1.records.leases()}) == sorted([VM, last, *kept])
    assert sorted(h1.journal.all("generation")) == [f"vm/{vm}" for vm in kept]
    assert h1.records.may_run(VM) == 1
