"""A fence: what a host that is off held ends by an operator's word, and is given up when the host is back."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.controller.conftest import INCARNATION, LONG_AGO, World
from tests.integration.controller.moving import begun, ended, lease

from serai.schema.commands.migration import MIGRATION_START, MIGRATION_WITHDRAW, MigrationOutcome, Withdrawal
from serai.schema.commands.vm import VM_RELEASE
from serai.schema.encoding import encode
from serai.schema.errors import ConflictError, InvalidError, SeraiError
from serai.schema.host import Host, HostState
from serai.schema.ids import HostName
from serai.schema.job import JobState
from serai.schema.lease import Claim
from serai.schema.reports import HostReport, Incarnation, LeaseEnd, ReportReceipt
from serai.schema.resource import Condition
from serai.schema.subjects import Subjects
from serai.schema.vm import HOST_SILENT, VmState

FENCE = {"is_off": True, "reason": "burnt"}


async def host(world: World, name: str) -> Host:
    found: Host = await world.client.call("host.show", name)
    return found


async def receipt(world: World, name: str, starts: int = 1) -> ReportReceipt:
    """The answer to a host's full report."""
    agent = Incarnation(journal=INCARNATION.journal, starts=starts)
    said = HostReport(host=HostName(name), incarnation=agent, time=LONG_AGO)
    answer = await world.agents.bus.request(Subjects.host_report(name), encode(said), timeout=5)
    return ReportReceipt.model_validate_json(answer)


async def fenced(world: World) -> None:
    """VM web1 ran on h2, which is off."""
    await world.create(disks=[])
    await world.do("vm.migrate", "web1", {"to": "h2"})
    await world.offline("h2")
    await world.client.call("host.fence", "h2", FENCE)


async def test_a_fence_is_an_operators_word_about_a_host_that_is_silent(world: World) -> None:
    with pytest.raises(InvalidError, match="your word that the machine is off") as caught:
        await world.client.call("host.fence", "h2", {})
    assert caught.value.info.field == "is_off"
    with pytest.raises(ConflictError, match="is online"):
        await world.client.call("host.fence", "h2", FENCE)
    await world.offline("h2")
    await world.client.call("host.fence", "h2", FENCE)
    status = (await host(world, "h2")).status
    assert status.state is HostState.FENCED
    assert status.fence is not None
    assert (status.fence.reason, bool(status.fence.by)) == ("burnt", True)


async def test_vms_of_a_fenced_host_start_elsewhere(world: World) -> None:
    await fenced(world)
    status = (await world.vm("web1")).status
    assert (status.state, status.reason) == (VmState.CRASHED, "its host h2 was fenced")
    assert (await lease(world)).ended == 2
    world.agents.asked.clear()
    assert (await world.do("vm.start", "web1")).state is JobState.DONE
    status = (await world.vm("web1")).status
    assert (status.state, status.host, status.epoch) == (VmState.RUNNING, "h1", 3)
    assert ("h2", VM_RELEASE) not in world.agents.asked


async def test_a_fenced_host_gives_up_what_it_lost_before_it_gets_anything(world: World) -> None:
    await fenced(world)
    await world.do("vm.start", "web1")
    vm = await world.vm("web1")
    world.agents.silent.clear()
    told = await world.agents.hello("h2")
    assert told.give_up == [LeaseEnd(vm=vm.id, epoch=2)]
    assert (await host(world, "h2")).status.state is HostState.FENCED
    with pytest.raises(SeraiError, match="h2"):
        await world.client.call("vm.migrate", "web1", {"to": "h2"})
    world.agents.claims("h2", vm.id, 2, Claim.RELEASED)
    assert (await world.agents.hello("h2")).give_up == []
    status = (await host(world, "h2")).status
    assert (status.state, status.fence) == (HostState.ONLINE, None)
    job = await world.do("vm.migrate", "web1", {"to": "h2"})
    assert job.state is JobState.DONE, job.error


async def test_a_host_that_is_fenced_no_more_is_not_called_silent(world: World) -> None:
    await world.create(disks=[])
    vm = await world.vm("web1")
    await world.offline("h1")
    await world.client.call("host.fence", "h1", FENCE)
    async with world.controller.store.transaction() as tx:
        await tx.vms.update_status(vm.id, conditions=[Condition(type=HOST_SILENT, message="h1 does not answer")])
    world.agents.silent.clear()
    world.agents.claims("h1", vm.id, 1, Claim.RELEASED)
    await world.agents.hello("h1")
    assert (await world.vm("web1")).status.conditions == []


async def test_a_lost_move_says_nothing_of_a_vm_whose_lease_went_its_own_way(world: World) -> None:
    job = await begun(world, restart="on-failure")
    async with world.controller.store.transaction() as tx:
        await world.controller.engine._services.rights.withdraw(tx, (await world.vm("web1")).id, job.id)
    await world.offline("h2")
    world.agents.answers[MIGRATION_WITHDRAW] = Withdrawal(never_sent=False)
    world.agents.release(MIGRATION_START, MigrationOutcome(committed=False, reason="nobody knows"))
    await world.until(job, lambda now: "h2 to be fenced" in now.waits_for)
    await world.client.call("host.fence", "h2", FENCE)
    await ended(world, job)
    assert ((await world.vm("web1")).status.state, (await lease(world)).ended) == (VmState.MIGRATING, 0)


async def test_a_fenced_host_is_not_believed(world: World) -> None:
    await fenced(world)
    world.agents.silent.clear()
    await world.agents.hello("h2")
    await asyncio.sleep(1.2)
    assert (await host(world, "h2")).status.state is HostState.FENCED
    assert (await world.vm("web1")).status.state is VmState.CRASHED


async def test_a_fenced_host_is_forgotten_once_nothing_of_it_is_left(world: World) -> None:
    await fenced(world)
    with pytest.raises(ConflictError, match="VMs web1"):
        await world.client.call("host.delete", "h2")
    assert (await world.do("vm.delete", "web1")).state is JobState.DONE
    await world.client.call("host.delete", "h2")
    assert [one.name for one in (await world.client.call("host.list")).items] == ["h1"]


@pytest.mark.parametrize("restart", ["never", "on-failure"])
async def test_a_move_whose_destination_is_fenced_without_a_verdict_ends_both_copies(
    world: World, restart: str
) -> None:
    """The source may have sent it all, and the destination may have written to the disks."""
    job = await begun(world, restart=restart)
    await world.offline("h2")
    world.agents.answers[MIGRATION_WITHDRAW] = Withdrawal(never_sent=False)
    world.agents.release(MIGRATION_START, MigrationOutcome(committed=False, reason="nobody knows"))
    await world.until(job, lambda now: "h2 to be fenced" in now.waits_for)
    await world.client.call("host.fence", "h2", FENCE)
    assert (await ended(world, job)).state is JobState.FAILED
    assert ("h1", VM_RELEASE) in world.agents.asked
    status, held = (await world.vm("web1")).status, await lease(world)
    assert (held.ended, held.offered_to) == (2, None)
    if restart == "never":
        assert (status.state, "h2, was fenced" in status.reason) == (VmState.CRASHED, True)
        assert (await world.do("vm.start", "web1")).state is JobState.DONE
    status = (await world.vm("web1")).status
    assert (status.state, status.host, status.epoch) == (VmState.RUNNING, "h1", 3)


async def test_a_move_whose_source_is_fenced_goes_by_the_destination(world: World) -> None:
    job = await begun(world)
    await world.offline("h1")
    await world.client.call("host.fence", "h1", FENCE)
    job = await ended(world, job)
    assert job.state is JobState.FAILED
    status, held = (await world.vm("web1")).status, await lease(world)
    assert (status.state, status.reason) == (VmState.CRASHED, "its host h1 was fenced")
    assert (held.ended, held.offered_to, held.highest) == (1, None, 2)


async def test_another_journal_is_refused_until_the_host_is_fenced(world: World) -> None:
    await world.create(disks=[])
    world.agents.incarnations["h2"] = Incarnation(journal="2" * 12, starts=1)
    for _ in range(2):
        with pytest.raises(ConflictError, match="reinstalled or cloned") as caught:
            await world.agents.hello("h2")
        assert {INCARNATION.journal, "2" * 12} <= set(str(caught.value).replace(":", " ").replace(",", " ").split())
    events = (await world.client.call("event.list", None, None, {"kind": "host.contested"})).items
    assert len(events) == 1
    await world.offline("h2")
    await world.client.call("host.fence", "h2", FENCE)
    world.agents.silent.clear()
    world.agents.strays["h2"] = [(await world.vm("web1")).id]
    # However often it is asked: an answer may be lost, and the answer to a question of the controller is not heard.
    await world.restart()
    for _ in range(2):
        assert (await world.agents.hello("h2")).end_strays
        assert (await host(world, "h2")).status.state is HostState.FENCED
    world.agents.strays.clear()
    assert not (await world.agents.hello("h2")).end_strays
    assert (await host(world, "h2")).status.state is HostState.ONLINE


async def test_a_fenced_host_that_only_reports_is_told_to_introduce_itself(world: World) -> None:
    await fenced(world)
    world.agents.silent.clear()
    assert (await receipt(world, "h2")).introduce
    vm = await world.vm("web1")
    world.agents.claims("h2", vm.id, 2, Claim.RELEASED)
    await world.agents.hello("h2")
    assert not (await receipt(world, "h2")).introduce


async def test_who_is_not_believed_is_told_to_introduce_itself(world: World) -> None:
    assert not (await receipt(world, "h1")).introduce
    assert (await receipt(world, "h1", starts=2)).introduce
    assert (await receipt(world, "h9")).introduce


async def test_an_offer_on_a_fenced_host_ends_by_its_id(world: World) -> None:
    """So that it is turned down only if it has not been committed meanwhile."""
    await fenced(world)
    world.agents.silent.clear()
    vm = await world.vm("web1")
    world.agents.claims("h2", vm.id, 2, Claim.RELEASED)
    world.agents.claims("h2", vm.id, 4, Claim.OFFERED, "one")
    told = await world.agents.hello("h2")
    assert told.give_up == [LeaseEnd(vm=vm.id, epoch=4, offer_id="one")]
    assert (await host(world, "h2")).status.state is HostState.FENCED


async def test_a_lower_start_counter_is_refused(world: World) -> None:
    world.agents.incarnations["h2"] = Incarnation(journal=INCARNATION.journal, starts=3)
    await world.agents.hello("h2")
    world.agents.incarnations["h2"] = Incarnation(journal=INCARNATION.journal, starts=2)
    with pytest.raises(ConflictError, match="start 2, and h2 was at start 3"):
        await world.agents.hello("h2")
    events = (await world.client.call("event.list", None, None, {"kind": "host.contested"})).items
    assert len(events) == 1
