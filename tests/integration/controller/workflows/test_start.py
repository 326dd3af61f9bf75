"""Starts: where, under which epoch, and what is shown of one that came to nothing."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.controller.conftest import INCARNATION, World

from serai.controller.workflows.start import START_VM, StartParams
from serai.lib.clock import SystemClock
from serai.schema.commands.envelope import Request
from serai.schema.commands.vm import VM_RELEASE, VM_START, ReleaseVm
from serai.schema.commands.volume import VOLUME_REFUSE
from serai.schema.encoding import encode
from serai.schema.errors import UnavailableError
from serai.schema.ids import HostName
from serai.schema.job import Job, JobState
from serai.schema.reports import HostReport
from serai.schema.subjects import Subjects
from serai.schema.vm import VmState


async def test_a_vm_that_fits_its_host_once_starts_there_again(world: World) -> None:
    await world.create(memory="6G")
    before = (await world.vm("web1")).status
    await world.do("vm.stop", "web1", {"force": True})
    await world.do("vm.start", "web1")
    after = (await world.vm("web1")).status
    assert (after.state, after.host, after.epoch) == (VmState.RUNNING, before.host, before.epoch)


async def test_a_vm_that_its_host_has_let_go_starts_there_under_a_fresh_epoch(world: World) -> None:
    """As after a start elsewhere that was left between the release and the new lease."""
    await world.create()
    vm = await world.vm("web1")
    await world.do("vm.stop", "web1", {"force": True})
    body = ReleaseVm(vm=vm.id, epoch=1, reason="starts on h2")
    command = Request(id="0" * 12, command=VM_RELEASE.name, key=f"vm/{vm.id}", body=body.model_dump(mode="json"))
    await world.agents.bus.request(Subjects.host_command("h1"), encode(command), timeout=5)
    job = await world.do("vm.start", "web1")
    assert job.state is JobState.DONE, job.error
    status = (await world.vm("web1")).status
    assert (status.state, status.host, status.epoch) == (VmState.RUNNING, "h1", 2)


async def test_a_start_that_was_cancelled_is_unknown_until_its_host_has_said(world: World) -> None:
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    held = world.agents.hold(VM_START)
    job: Job = await world.client.call("vm.start", "web1")
    await asyncio.wait_for(held.asked.wait(), 20)
    await world.client.call("job.cancel", job.id)
    ended = await asyncio.wait_for(world.client.wait_job(job.id), 30)
    status = (await world.vm("web1")).status
    assert (ended.state, status.state) == (JobState.CANCELLED, VmState.UNKNOWN)


async def test_a_vm_whose_start_never_came_to_its_host_is_stopped(world: World) -> None:
    await world.create(disks=[])
    await world.do("vm.stop", "web1", {"force": True})
    held = world.agents.hold(VM_START)
    job: Job = await world.client.call("vm.start", "web1", {"host": "h2"})
    await asyncio.wait_for(held.asked.wait(), 20)
    await world.client.call("job.cancel", job.id)
    await asyncio.wait_for(world.client.wait_job(job.id), 30)
    vm = await world.vm("web1")
    assert (vm.status.state, vm.status.host) == (VmState.UNKNOWN, "h2")
    report = HostReport(host=HostName("h2"), incarnation=INCARNATION, time=SystemClock().now())
    await world.agents.bus.request(Subjects.host_report("h2"), encode(report), timeout=5)
    async with asyncio.timeout(20):
        while (await world.vm("web1")).status.state is not VmState.STOPPED:
            await asyncio.sleep(0.02)


async def test_a_vm_that_its_host_holds_and_does_not_list_stays_unknown(world: World) -> None:
    await world.create(disks=[])
    vm = await world.vm("web1")
    async with world.controller.store.transaction() as tx:
        await tx.vms.update_status(vm.id, state=VmState.UNKNOWN)
    await world.agents.hello("h1")
    assert (await world.vm("web1")).status.state is VmState.UNKNOWN


async def test_a_vm_whose_start_failed_is_stopped_and_says_why(world: World) -> None:
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    world.agents.failing.add(VM_START)
    assert (await world.do("vm.start", "web1")).state is JobState.FAILED
    status = (await world.vm("web1")).status
    assert (status.state, status.reason) == (VmState.STOPPED, "could not start: vm.start failed")


async def test_a_stopped_vm_starts_on_another_host_once_the_old_one_has_given_it_up(world: World) -> None:
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    world.agents.failing.add(VM_RELEASE)
    job = await world.do("vm.start", "web1", {"host": "h2"})
    assert (job.state, job.error and job.error.message) == (JobState.FAILED, "vm.release failed")
    assert ("h2", VM_START) not in world.agents.asked
    world.agents.failing.clear()
    world.agents.asked.clear()
    job = await world.do("vm.start", "web1", {"host": "h2"})
    assert job.state is JobState.DONE, job.error
    told = [row for row in world.agents.asked if row[1] in (VM_RELEASE, VOLUME_REFUSE, VM_START)]
    assert told == [("h1", VM_RELEASE), ("h1", VOLUME_REFUSE), ("h2", VM_START)]
    vm = await world.vm("web1")
    assert (vm.status.state, vm.status.host, vm.status.epoch) == (VmState.RUNNING, "h2", 2)
    assert vm.status.placement == "asked for by name"
    assert job.result is not None
    assert (job.result["host"], job.result["why"]) == ("h2", "asked for by name")


async def test_a_vm_that_fits_its_host_no_more_starts_elsewhere_and_says_why(world: World) -> None:
    await world.create(memory="5G")
    await world.do("vm.stop", "web1", {"force": True})
    await world.create("web2", host="h1", memory="5G", disks=[], vnics=[])
    assert (await world.do("vm.start", "web1")).state is JobState.DONE
    status = (await world.vm("web1")).status
    assert status.host == "h2"
    assert status.placement.startswith("h1, where it was, has 2.5G of memory free, and 5G is needed; the only host")


async def test_a_vm_whose_host_is_silent_starts_nowhere(world: World) -> None:
    await world.create(disks=[])
    await world.do("vm.stop", "web1", {"force": True})
    await world.offline("h1")
    for body in ({}, {"host": "h1"}, {"host": "h2"}):
        with pytest.raises(UnavailableError, match="was last on host h1, which is offline") as caught:
            await world.client.call("vm.start", "web1", body)
        assert (caught.value.info.field, caught.value.info.value) == ("host", "h1")
    # As when the host fell silent between the API's look and the job's.
    vm = await world.vm("web1")
    world.agents.asked.clear()
    async with world.controller.store.transaction() as tx:
        params = StartParams(vm=vm.id, host=HostName("h2"))
        job = await world.controller.engine.submit(tx, START_VM, "vm/web1", vm.id, params, requested_by="test")
    ended = await asyncio.wait_for(world.client.wait_job(job.id), 20)
    assert (ended.state, ended.error and ended.error.value) == (JobState.FAILED, "h1")
    assert world.agents.asked == []
    assert (await world.vm("web1")).status.epoch == 1


async def test_a_vm_whose_disks_host_is_silent_does_not_start(world: World) -> None:
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    assert (await world.do("vm.start", "web1", {"host": "h2"})).state is JobState.DONE
    await world.do("vm.stop", "web1", {"force": True})
    await world.offline("h1")
    with pytest.raises(UnavailableError, match="volume web1-disk0 of VM web1 is in pool p on host h1"):
        await world.client.call("vm.start", "web1")
