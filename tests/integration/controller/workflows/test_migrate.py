"""Moves: refused before they begin, ended, failed, cancelled; `test_migrate_ends` has those with a silent end."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.controller.conftest import FACTS, INCARNATION, World

from serai.controller.workflows.migrate import MIGRATE_VM, MigrateParams
from serai.schema.commands.migration import (
    MIGRATION_ABANDON,
    MIGRATION_CANCEL,
    MIGRATION_PREPARE,
    MIGRATION_START,
    MIGRATION_WITHDRAW,
    CancelMigration,
    CancelResult,
    MigrationOutcome,
    Verdict,
    Withdrawal,
)
from serai.schema.commands.vm import VM_CONFIGURE, ConfigureResult
from serai.schema.encoding import encode
from serai.schema.errors import ConflictError
from serai.schema.ids import HostName
from serai.schema.job import JobState
from serai.schema.lease import Claim
from serai.schema.reports import Introduction
from serai.schema.subjects import Subjects
from serai.schema.vm import VmState


async def test_a_move_is_refused_before_it_begins_where_an_end_lacks_a_clean_end_of_the_stream(world: World) -> None:
    await world.create()
    host = (await world.vm("web1")).status.host
    other = "h2" if host == "h1" else "h1"
    poor = FACTS.model_copy(update={"suppress_vmdesc": False})
    said = Introduction(host=HostName(other), incarnation=INCARNATION, facts=poor)
    await world.agents.bus.request(Subjects.hello(other), encode(said), timeout=5)
    with pytest.raises(ConflictError, match="no suppress-vmdesc"):
        await world.do("vm.migrate", "web1", {"to": other})
    assert not {command for _, command in world.agents.asked} & {MIGRATION_PREPARE, MIGRATION_START}
    assert (await world.vm("web1")).status.state is VmState.RUNNING


async def test_a_move_ends_on_the_destination(world: World) -> None:
    await world.create()
    job = await world.do("vm.migrate", "web1", {"to": "h2"})
    assert job.state is JobState.DONE, job.error
    status = (await world.vm("web1")).status
    assert (status.state, status.host, status.epoch) == (VmState.RUNNING, "h2", 2)


async def test_a_move_that_fails_leaves_the_vm_where_it_was(world: World) -> None:
    await world.create()
    world.agents.failing.add(MIGRATION_START)
    job = await world.do("vm.migrate", "web1", {"to": "h2"})
    assert job.state is JobState.FAILED
    assert {("h2", MIGRATION_ABANDON), ("h1", MIGRATION_WITHDRAW)} <= set(world.agents.asked)
    assert (await world.client.call("host.show", "h2")).status.leftovers == []
    vm = await world.vm("web1")
    assert (vm.status.state, vm.status.host, vm.status.epoch) == (VmState.RUNNING, "h1", 1)
    world.agents.failing.clear()
    assert (await world.do("vm.migrate", "web1", {"to": "h2"})).state is JobState.DONE
    assert (await world.vm("web1")).status.epoch == 3


async def test_a_move_queued_behind_an_edit_that_waits_for_a_restart_prepares_nothing(world: World) -> None:
    await world.create()
    vm = await world.vm("web1")
    world.agents.answers[VM_CONFIGURE] = ConfigureResult(applied=[], pending=["cpus: no"])
    edit = await world.client.call("vm.edit", "web1", {"cpus": 2})
    # Written by the API's own transaction before the edit's job ends; the move's job runs after it either way.
    async with world.controller.store.transaction() as tx:
        params = MigrateParams(vm=vm.id, to=HostName("h2"))
        job = await world.controller.engine.submit(tx, MIGRATE_VM, "vm/web1", vm.id, params, requested_by="test")
    await world.client.wait_job(edit.id)
    ended = await asyncio.wait_for(world.client.wait_job(job.id), 20)
    assert (ended.state, ended.error and ended.error.value) == (JobState.FAILED, "pending-restart")
    assert not {MIGRATION_PREPARE, MIGRATION_START} & {command for _, command in world.agents.asked}


async def test_a_move_that_is_cancelled_says_so_once(world: World) -> None:
    """With the reason that the source passes on: the cancel's own."""
    await world.create()
    migrate = world.agents.hold(MIGRATION_START)
    world.agents.answers[MIGRATION_CANCEL] = CancelResult(too_late=False)
    job = await world.client.call("vm.migrate", "web1", {"to": "h2"})
    await asyncio.wait_for(migrate.asked.wait(), 20)
    abandon = world.agents.hold(MIGRATION_ABANDON)
    await world.client.call("job.cancel", job.id)
    # The source may hear only from the destination, which hangs up, that it is over.
    await asyncio.wait_for(abandon.asked.wait(), 20)
    abandon.answer.set_result(Verdict(claim=Claim.ABANDONED))
    reason = CancelMigration(vm=job.target_id, offer_id="x").reason
    migrate.answer.set_result(MigrationOutcome(committed=False, reason=reason))
    ended = await asyncio.wait_for(world.client.wait_job(job.id), 20)
    assert (ended.state, ended.error and ended.error.message) == (
        JobState.CANCELLED,
        "the VM stayed on h1: cancelled on request",
    )


async def test_figures_of_a_move_that_nobody_told_are_unknown(world: World) -> None:
    """The source's answer is lost; the destination's journal says that the VM is there."""
    await world.create()
    world.agents.failing.add(MIGRATION_START)
    world.agents.answers[MIGRATION_ABANDON] = Verdict(claim=Claim.COMMITTED)
    world.agents.answers[MIGRATION_WITHDRAW] = Withdrawal(never_sent=False)
    await world.do("vm.migrate", "web1", {"to": "h2"})
    status = (await world.vm("web1")).status
    assert (status.state, status.host, status.epoch) == (VmState.RUNNING, "h2", 2)
    summary = status.last_migration
    assert summary is not None
    assert (summary.source, summary.destination) == ("h1", "h2")
    assert (summary.total_s, summary.downtime_ms, summary.rounds, summary.bytes_sent) == (None, None, None, None)
