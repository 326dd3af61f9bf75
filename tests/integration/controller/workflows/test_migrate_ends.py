"""How a move ends when one of its hosts says nothing: by the other one's word, or by a fence."""

from __future__ import annotations

import asyncio

from tests.integration.controller.conftest import World
from tests.integration.controller.moving import begun, ended, lease

from serai.lib.clock import SystemClock
from serai.schema.commands.migration import (
    MIGRATION_ABANDON,
    MIGRATION_CANCEL,
    MIGRATION_PREPARE,
    MIGRATION_START,
    MIGRATION_WITHDRAW,
    MigrationOutcome,
    Verdict,
    Withdrawal,
)
from serai.schema.commands.vm import VM_RELEASE
from serai.schema.encoding import encode
from serai.schema.ids import HostName
from serai.schema.job import Job, JobState
from serai.schema.lease import Claim
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport, VmState


async def left(world: World, host: str) -> list[str]:
    return [one.command for one in (await world.client.call("host.show", host)).status.leftovers]


async def reports_running(world: World, host: str, epoch: int) -> None:
    vm = await world.vm("web1")
    world.agents.claims(host, vm.id, epoch, Claim.COMMITTED)
    report = VmReport(
        vm=vm.id, host=HostName(host), epoch=epoch, state=VmState.RUNNING, since=SystemClock().now(), sequence=1
    )
    await world.agents.bus.request(Subjects.vm_report(host, vm.id), encode(report), timeout=5)


async def test_the_sources_promise_ends_a_move_whose_destination_is_silent(world: World) -> None:
    job = await begun(world)
    world.agents.silent.add("h2")
    world.agents.release(MIGRATION_START, MigrationOutcome(committed=False, reason="the link was cut"))
    job = await ended(world, job)
    assert (job.state, "the link was cut" in str(job.error)) == (JobState.FAILED, True)
    assert ("h1", MIGRATION_WITHDRAW) in world.agents.asked
    status, held = (await world.vm("web1")).status, await lease(world)
    assert (status.state, status.host) == (VmState.RUNNING, "h1")
    assert (held.host, held.epoch, held.highest, held.offered_to) == ("h1", 1, 2, None)
    # What may be prepared there is the destination's to turn down when it is back.
    assert await left(world, "h2") == ["migration.abandon"]
    world.agents.silent.clear()
    await world.agents.hello("h2")
    async with asyncio.timeout(20):
        while await left(world, "h2"):
            await asyncio.sleep(0.02)
    assert ("h2", MIGRATION_ABANDON) in world.agents.asked


async def test_without_a_promise_only_the_destination_decides(world: World) -> None:
    job = await begun(world)
    world.agents.silent.add("h2")
    world.agents.answers[MIGRATION_WITHDRAW] = Withdrawal(never_sent=False)
    world.agents.release(MIGRATION_START, MigrationOutcome(committed=False, reason="nobody knows"))
    job = await world.until(job, lambda now: "h2 to be fenced" in now.waits_for)
    assert (await lease(world)).offered_to == "h2"
    world.agents.answers[MIGRATION_ABANDON] = Verdict(claim=Claim.COMMITTED)
    world.agents.silent.clear()
    await ended(world, job)
    status = (await world.vm("web1")).status
    assert (status.state, status.host, status.epoch) == (VmState.RUNNING, "h2", 2)


async def test_a_source_that_is_silent_after_the_commit_does_not_keep_the_job(world: World) -> None:
    job = await begun(world)
    world.agents.silent.add("h1")
    await reports_running(world, "h2", 2)
    job = await ended(world, job)
    assert job.state is JobState.DONE, job.error
    held = await lease(world)
    assert (held.host, held.epoch) == ("h2", 2)
    # The pool is on the source, too: its target refuses the old epoch when it is back.
    assert await left(world, "h1") == ["volume.refuse", "vm.release"]
    world.agents.silent.clear()
    await world.agents.hello("h1")
    async with asyncio.timeout(20):
        while await left(world, "h1"):
            await asyncio.sleep(0.02)
    assert ("h1", VM_RELEASE) in world.agents.asked


async def test_a_cancel_is_repeated_until_the_outcome_is_known(world: World) -> None:
    job = await begun(world)
    world.agents.silent |= {"h1", "h2"}
    await world.client.call("job.cancel", job.id)
    await asyncio.sleep(1)
    assert not (await world.client.call("job.show", job.id)).state.ended
    world.agents.silent.remove("h2")
    job = await ended(world, job)
    assert job.state is JobState.CANCELLED, job.error
    assert ("h2", MIGRATION_ABANDON) in world.agents.asked
    assert ("h1", MIGRATION_CANCEL) not in world.agents.asked
    assert (await lease(world)).offered_to is None


async def test_a_stop_by_force_is_not_stuck_behind_a_move_whose_destination_is_silent(world: World) -> None:
    await world.create()
    held = world.agents.hold(MIGRATION_PREPARE)
    job: Job = await world.client.call("vm.migrate", "web1", {"to": "h2"})
    await asyncio.wait_for(held.asked.wait(), 20)
    world.agents.silent.add("h2")
    held.answer.cancel()
    stopped = await world.do("vm.stop", "web1", {"force": True})
    assert stopped.state is JobState.DONE, stopped.error
    assert (await ended(world, job)).state is JobState.CANCELLED
    assert (await world.vm("web1")).status.state is VmState.STOPPED
