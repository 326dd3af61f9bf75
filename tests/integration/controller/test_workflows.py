"""The real workflows behind the real API: who owns what afterwards."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from tests.integration.controller.conftest import FACTS, INCARNATION, World

from serai.controller.workflows.lifecycle import START_VM, StartParams
from serai.controller.workflows.migrate import MIGRATE_VM, MigrateParams
from serai.lib.clock import SystemClock
from serai.schema.commands.base import AnyCommand
from serai.schema.commands.envelope import Request
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
from serai.schema.commands.uplink import UPLINK_TAKE, UplinkTaken
from serai.schema.commands.vm import VM_CONFIGURE, VM_RELEASE, VM_START, VM_STOP, ConfigureResult, ReleaseVm
from serai.schema.commands.volume import VOLUME_ADMIT, VOLUME_CREATE, VOLUME_REFUSE
from serai.schema.encoding import encode
from serai.schema.errors import ConflictError, UnavailableError
from serai.schema.ids import HostName
from serai.schema.job import Job, JobState
from serai.schema.lease import Claim
from serai.schema.network import NetworkStatus
from serai.schema.reports import HostReport, Introduction
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport, VmState


@pytest.mark.parametrize("command", [VOLUME_CREATE, VOLUME_ADMIT, VM_START], ids=str)
async def test_a_creation_that_fails_leaves_nothing(world: World, command: AnyCommand) -> None:
    world.agents.failing.add(command)
    job = await world.create()
    assert (job.state, job.error and job.error.message) == (JobState.FAILED, f"{command} failed")
    assert await world.owners() == {}
    assert (await world.client.call("vm.list")).items == []
    assert (await world.client.call("network.show", "lan")).status.addresses_used == 0
    world.agents.failing.clear()
    assert (await world.create()).state is JobState.DONE
    assert await world.owners() == {"web1-disk0": "web1"}


async def test_a_start_says_that_the_vm_is_emulated_and_why(world: World) -> None:
    job = await world.create()
    assert job.result is not None
    assert job.result["warning"] == "emulated (tcg): there is no /dev/kvm"


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


async def test_a_host_is_shown_with_when_it_spoke_last(world: World) -> None:
    async def seen() -> list[datetime]:
        shown = await world.client.call("host.show", "h1")
        edited = await world.client.call("host.edit", "h1", {"description": "x"})
        (listed,) = [host for host in (await world.client.call("host.list")).items if host.name == "h1"]
        return [host.status.seen for host in (shown, edited, listed)]

    before = await seen()
    report = HostReport(host=HostName("h1"), incarnation=INCARNATION, time=SystemClock().now())
    await world.agents.bus.request(Subjects.host_report("h1"), encode(report), timeout=5)
    after = await seen()
    assert len(set(before)) == len(set(after)) == 1
    assert after[0] > before[0]


async def test_who_has_a_networks_bridge_is_shown_and_placement_goes_by_it(world: World) -> None:
    async def says(host: str, *bridges: str) -> None:
        now = SystemClock().now()
        report = HostReport(host=HostName(host), incarnation=INCARNATION, time=now, bridges=list(bridges))
        await world.agents.bus.request(Subjects.host_report(host), encode(report), timeout=5)

    async def shown() -> NetworkStatus:
        found: NetworkStatus = (await world.client.call("network.show", "n2")).status
        return found

    made = await world.client.call(
        "network.create", None, {"name": "n2", "spec": {"bridge": "br-n2", "subnet": "10.78.0.0/24"}}
    )
    assert (made.status.state, made.status.hosts, made.status.without) == ("ready", [], [])
    await says("h1", "br-lan")
    await says("h2", "br-lan")
    status = await shown()
    assert (status.state, status.hosts, status.without) == ("missing", [], ["h1", "h2"])
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        await world.create(vnics=[{"network": "n2"}])
    # It may be defined: its bridge may be there once it starts.
    job = await world.create(vnics=[{"network": "n2"}], running=False)
    assert (job.state, (await world.vm("web1")).status.host) == (JobState.DONE, "h1")
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        await world.client.call("vm.start", "web1")
    world.agents.answers[UPLINK_TAKE] = UplinkTaken(token="t", deadline=SystemClock().now())
    assert (await world.do("host.take", "h2", {"uplink": "eth2", "bridge": "br-n2"})).state is JobState.DONE
    status = await shown()
    assert (status.state, status.hosts, status.without) == ("ready", ["h2"], ["h1"])
    assert (await world.do("vm.start", "web1")).state is JobState.DONE
    vm = await world.vm("web1")
    assert vm.status.host == "h2"
    assert vm.status.placement.startswith("h1, where it was, has no bridge br-n2 (network n2); the only host")
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        await world.client.call("vm.migrate", "web1", {"to": "h1"})


async def test_a_vm_whose_start_failed_is_stopped_and_says_why(world: World) -> None:
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    world.agents.failing.add(VM_START)
    assert (await world.do("vm.start", "web1")).state is JobState.FAILED
    status = (await world.vm("web1")).status
    assert (status.state, status.reason) == (VmState.STOPPED, "could not start: vm.start failed")


async def test_a_restart_stops_and_starts(world: World) -> None:
    await world.create()
    world.agents.asked.clear()
    job = await world.do("vm.restart", "web1", {"timeout": 5})
    assert job.state is JobState.DONE, job.error
    lives = [row for row in world.agents.asked if row[1] in (VM_STOP, VM_START)]
    assert lives == [("h1", VM_STOP), ("h1", VM_START)]
    assert [step.name for step in job.steps] == ["stop", "place", "start"]
    assert job.result is not None
    assert (job.result["host"], job.result["stopped"]) == ("h1", "as asked")
    vm = await world.vm("web1")
    assert (vm.status.state, vm.spec.running) == (VmState.RUNNING, True)
    world.agents.failing.add(VM_STOP)
    world.agents.asked.clear()
    assert (await world.do("vm.restart", "web1")).state is JobState.FAILED
    assert ("h1", VM_START) not in world.agents.asked


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


async def test_an_answer_that_is_older_than_a_report_changes_nothing(world: World) -> None:
    """As when an answer is repeated, and the VM has crashed since."""
    await world.create()
    vm = await world.vm("web1")
    now = SystemClock().now()
    crashed = VmReport(vm=vm.id, host=HostName("h1"), epoch=1, state=VmState.CRASHED, since=now, sequence=100)
    await world.agents.bus.request(Subjects.vm_report("h1", vm.id), encode(crashed), timeout=5)
    world.agents.sequence = 99
    assert (await world.do("vm.stop", "web1", {"force": True})).state is JobState.DONE
    assert (await world.vm("web1")).status.state is VmState.CRASHED
    world.agents.sequence = 101
    await world.do("vm.stop", "web1", {"force": True})
    assert (await world.vm("web1")).status.state is VmState.STOPPED


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
    assert ("h2", MIGRATION_ABANDON) in world.agents.asked
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


async def test_a_disk_that_was_removed_is_nobodys(world: World) -> None:
    await world.create()
    disks = [disk.model_dump(mode="json") for disk in (await world.vm("web1")).spec.disks]
    await world.do("vm.edit", "web1", {"disks": [*disks, {"pool": "p", "size": "1G"}]})
    assert await world.owners() == {"web1-disk0": "web1", "web1-disk1": "web1"}
    await world.do("vm.edit", "web1", {"disks": disks})
    assert await world.owners() == {"web1-disk0": "web1", "web1-disk1": None}
    assert (await world.do("volume.delete", "web1-disk1")).state is JobState.DONE


async def test_everything_goes_in_the_end(world: World) -> None:
    await world.create()
    await world.do("vm.edit", "web1", {"rename": "web2"})
    await world.do("vm.stop", "web2", {"force": True})
    assert (await world.do("vm.clone", "web2", {"name": "web3"})).state is JobState.DONE
    for name in ("web2", "web3"):
        assert (await world.do("vm.delete", name)).state is JobState.DONE
    assert await world.owners() == {}
    assert (await world.do("image.delete", "tiny")).state is JobState.DONE
    assert (await world.do("pool.delete", "p")).state is JobState.DONE
