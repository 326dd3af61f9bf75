"""Stops: of a VM that nobody answers for, and by force."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.controller.conftest import INCARNATION, World

from serai.lib.clock import SystemClock
from serai.schema.commands.migration import (
    MIGRATION_CANCEL,
    MIGRATION_START,
    CancelResult,
    MigrationOutcome,
)
from serai.schema.commands.vm import VM_RELEASE, VM_STOP
from serai.schema.encoding import encode
from serai.schema.errors import ConflictError
from serai.schema.ids import HostName
from serai.schema.job import JobState
from serai.schema.reports import HostReport
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport, VmState


async def test_a_vm_of_which_its_host_has_no_word_is_stopped_by_force_alone(world: World) -> None:
    await world.create()
    vm = await world.vm("web1")
    report = HostReport(host=HostName("h1"), incarnation=INCARNATION, time=SystemClock().now(), silent=[vm.id])
    await world.agents.bus.request(Subjects.host_report("h1"), encode(report), timeout=5)
    status = (await world.vm("web1")).status
    assert (status.state, "does not answer" in status.reason) == (VmState.UNKNOWN, True)
    for call in ("vm.stop", "vm.restart", "vm.start", "vm.pause"):
        with pytest.raises(ConflictError, match="serai vm stop web1 --force"):
            await world.client.call(call, "web1")
    world.agents.asked.clear()
    job = await world.do("vm.stop", "web1", {"force": True})
    assert job.state is JobState.DONE, job.error
    assert world.agents.asked == [("h1", VM_RELEASE)]
    assert (await world.vm("web1")).status.state is VmState.STOPPED
    assert (await world.do("vm.start", "web1")).state is JobState.DONE
    status = (await world.vm("web1")).status
    assert (status.state, status.host, status.epoch) == (VmState.RUNNING, "h1", 2)


@pytest.mark.parametrize("verb", ["delete", "stop"])
async def test_force_does_not_wait_for_a_move(world: World, verb: str) -> None:
    """It asks the move to end, says so while it waits, and goes on then; without force the move is not touched."""
    await world.create()
    migrate = world.agents.hold(MIGRATION_START)
    world.agents.answers[MIGRATION_CANCEL] = CancelResult(too_late=False)
    move = await world.client.call("vm.migrate", "web1", {"to": "h2"})
    await asyncio.wait_for(migrate.asked.wait(), 20)
    await world.moving("web1")
    with pytest.raises(ConflictError):
        await world.client.call(f"vm.{verb}", "web1")
    body, query = ({"force": True}, None) if verb == "stop" else (None, {"force": True})
    job = await world.client.call(f"vm.{verb}", "web1", body, query)
    waiting = await world.until(job, lambda now: bool(now.waits_for))
    assert waiting.waits_for.endswith(f"job {move.id} (vm.migrate of vm/web1), which was asked to stop")
    await world.until(job, lambda _: ("h1", MIGRATION_CANCEL) in world.agents.asked)
    world.agents.release(MIGRATION_START, MigrationOutcome(committed=False, reason="cancelled on request"))
    assert (await asyncio.wait_for(world.client.wait_job(move.id), 20)).state is JobState.CANCELLED
    ended = await asyncio.wait_for(world.client.wait_job(job.id), 20)
    assert ended.state is JobState.DONE, ended.error
    if verb == "stop":
        assert (await world.vm("web1")).status.state is VmState.STOPPED
    else:
        assert (await world.client.call("vm.list")).items == []


async def test_a_stop_by_force_does_not_wait_for_one_that_asks_the_guest(world: World) -> None:
    await world.create()
    world.agents.hold(VM_STOP)
    gentle = await world.client.call("vm.stop", "web1", {"timeout": 3600})
    await world.until(gentle, lambda _: ("h1", VM_STOP) in world.agents.asked)
    forced = await world.client.call("vm.stop", "web1", {"force": True})
    await world.until(forced, lambda _: world.agents.asked.count(("h1", VM_STOP)) == 2)
    vm = await world.vm("web1")
    now = SystemClock().now()
    stopped = VmReport(vm=vm.id, host=HostName("h1"), epoch=1, state=VmState.STOPPED, since=now, sequence=100)
    world.agents.release(VM_STOP, stopped)
    for job in (gentle, forced):
        assert (await asyncio.wait_for(world.client.wait_job(job.id), 20)).state is JobState.DONE


async def test_a_vm_that_is_starting_on_nobodys_word_is_stopped_by_force(world: World) -> None:
    """No job is at work, and its host never got the command."""
    await world.create()
    vm = await world.vm("web1")
    async with world.controller.store.transaction() as tx:
        await tx.vms.update_status(vm.id, state=VmState.STARTING)
    world.agents.asked.clear()
    job = await world.do("vm.stop", "web1", {"force": True})
    assert world.agents.asked == [("h1", VM_RELEASE)]
    assert job.state is JobState.DONE, job.error
    assert (await world.vm("web1")).status.state is VmState.STOPPED


async def test_a_vm_that_a_fence_has_ended_is_stopped_without_its_host(world: World) -> None:
    await world.create(disks=[])
    await world.do("vm.migrate", "web1", {"to": "h2"})
    await world.offline("h2")
    await world.client.call("host.fence", "h2", {"is_off": True})
    assert (await world.vm("web1")).status.state is VmState.CRASHED
    job = await world.do("vm.stop", "web1")
    assert job.state is JobState.DONE, job.error
    assert (await world.vm("web1")).status.state is VmState.STOPPED
