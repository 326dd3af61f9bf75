"""The database is an old one: hosts know more, and nothing is granted before they have said it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.integration.controller.conftest import World
from tests.integration.controller.moving import lease

from serai.app.controller import DATABASE
from serai.core import launch as plan
from serai.drivers.storage.fake import FakeExporter
from serai.schema.commands.base import AnyCommand
from serai.schema.commands.envelope import Reply
from serai.schema.commands.migration import MIGRATION_PREPARE
from serai.schema.commands.vm import VM_DOCUMENT, VM_RELEASE, VM_START
from serai.schema.commands.volume import VOLUME_ADMIT, VOLUME_REFUSE
from serai.schema.document import VmDocument
from serai.schema.encoding import encode
from serai.schema.errors import NotFoundError, StaleError, UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.job import Event, Job, JobState
from serai.schema.launch import Admission
from serai.schema.lease import Claim
from serai.schema.reports import LeaseEnd, StorePosition
from serai.schema.subjects import Subjects
from serai.schema.vm import VmState


class Backup:
    """Of a controller's database, taken and put back while the controller is down."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.file = world.config.state / "backup"

    async def take(self) -> None:
        await self.world.close()
        shutil.copyfile(self.world.config.state / DATABASE, self.file)
        await self.world.open()

    async def restore(self) -> None:
        await self.world.close()
        for file in self.world.config.state.glob(f"{DATABASE}*"):
            file.unlink()
        shutil.copyfile(self.file, self.world.config.state / DATABASE)
        await self.world.open()


@pytest.fixture
def backup(world: World) -> Backup:
    return Backup(world)


@pytest.fixture
def documents(world: World) -> list[VmDocument]:
    """What hosts were given to keep, at each start."""
    given: list[VmDocument] = []
    journal = world.agents._journal

    def keep(host: str, command: AnyCommand, body: dict[str, Any]) -> None:
        journal(host, command, body)
        if command is VM_START:
            given.append(VmDocument.model_validate(body["document"]))

    world.agents._journal = keep  # type: ignore[method-assign] # it sees each command
    return given


async def events(world: World, kind: str) -> list[Event]:
    found: list[Event] = (await world.client.call("event.list", None, None, {"kind": kind})).items
    return found


async def said(world: World, kind: str) -> list[Event]:
    async with asyncio.timeout(20):
        while not (found := await events(world, kind)):
            await asyncio.sleep(0.02)
    return found


async def test_a_database_from_before_a_move_starts_no_second_copy(world: World, backup: Backup) -> None:
    await world.create(disks=[])
    await world.do("vm.stop", "web1", {"force": True})
    await backup.take()
    await world.do("vm.start", "web1")
    assert (await world.do("vm.migrate", "web1", {"to": "h2"})).state is JobState.DONE
    world.agents.silent.add("h2")
    await backup.restore()
    assert (await said(world, "store.restored"))[0].data["severity"] == "alarm"
    assert (await world.vm("web1")).status.host == "h1"
    world.agents.asked.clear()
    job: Job = await world.client.call("vm.start", "web1", {})
    job = await world.until(job, lambda now: "h2 to report" in now.waits_for)
    assert VM_START not in [command for _, command in world.agents.asked]
    world.agents.silent.clear()
    await world.agents.hello("h2")
    assert (await said(world, "lease.adopted"))[0].data["host"] == "h2"
    assert await said(world, "store.complete")
    # It runs there: the start that waited must not end it.
    job = await asyncio.wait_for(world.client.wait_job(job.id), 20)
    assert (job.state, "on h2" in str(job.error)) == (JobState.FAILED, True)
    assert VM_START not in [command for _, command in world.agents.asked]
    held = await lease(world)
    assert (held.host, held.epoch) == ("h2", 2)


async def test_a_fence_ends_the_waiting(world: World, backup: Backup) -> None:
    await world.create(disks=[])
    await world.do("vm.stop", "web1", {"force": True})
    world.agents.journals.clear()  # the holder has no claim: any host may have got the VM
    world.agents.silent.add("h2")
    await world.restart()
    job: Job = await world.client.call("vm.start", "web1", {})
    await world.until(job, lambda now: "h2 to report" in now.waits_for)
    await world.offline("h2")
    await world.client.call("host.fence", "h2", {"is_off": True})
    assert (await asyncio.wait_for(world.client.wait_job(job.id), 20)).state is JobState.DONE


async def test_a_vm_newer_than_the_backup_is_taken_back_in(
    world: World, backup: Backup, documents: list[VmDocument]
) -> None:
    await backup.take()
    await world.create()
    before = await world.vm("web1")
    world.agents.answers[VM_DOCUMENT] = documents[0]
    await backup.restore()
    (event,) = await said(world, "vm.adopted")
    assert event.data["severity"] == "alarm"
    after = await world.vm("web1")
    assert (after.id, after.spec, after.status.host, after.status.epoch) == (before.id, before.spec, "h1", 1)
    assert after.status.addresses == before.status.addresses
    assert await world.owners() == {"web1-disk0": "web1"}
    assert (await lease(world)).host == "h1"
    assert (await world.do("vm.stop", "web1", {"force": True})).state is JobState.DONE


async def test_a_name_that_is_taken_gets_a_suffix(world: World, backup: Backup, documents: list[VmDocument]) -> None:
    await backup.take()
    await world.create(vnics=[])
    old = await world.vm("web1")
    world.agents.silent |= {"h1", "h2"}
    await backup.restore()
    world.agents.silent.clear()
    world.agents.answers[VM_DOCUMENT] = documents[0]
    spec = {"image": "tiny", "memory": "1G", "running": False}
    await world.client.call("vm.create", None, {"name": "web1", "spec": spec})
    await world.agents.hello("h1")
    await said(world, "vm.adopted")
    assert (await world.vm(f"web1-{old.id[:4]}")).id == old.id


async def test_an_epoch_that_a_target_admitted_for_another_host_is_burnt(world: World) -> None:
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    real = world.agents._answer

    async def witness(host: str, request: Any) -> bytes:
        if request.command == VOLUME_ADMIT.name and "epoch" not in seen:
            seen.append("epoch")
            error = StaleError("epoch 7 was admitted for h2", field="epoch", value=7)
            return encode(Reply(state="failed", error=error.info))
        return await real(host, request)

    seen: list[str] = []
    world.agents._answer = witness  # type: ignore[method-assign] # a target that knows more than the database
    assert (await world.do("vm.start", "web1")).error is None
    assert ((await lease(world)).epoch, (await lease(world)).highest) == (8, 8)
    assert await said(world, "store.restored")


@pytest.fixture
def target(world: World) -> FakeExporter:
    """What the hosts' agents ask about the volumes of the pool."""
    exporter, real = FakeExporter(), world.agents._answer

    async def witness(host: str, request: Any) -> bytes:
        body = request.body
        try:
            await exporter.start()
            if request.command == VOLUME_ADMIT.name and host not in world.agents.silent:
                await exporter.export(body["volume"], Path("/volume"))
                await exporter.admit(body["volume"], Admission.model_validate(body["admission"]))
            elif request.command == VOLUME_REFUSE.name and host not in world.agents.silent:
                await exporter.refuse(body["volume"], body["vm"], body["epoch"], body["host"])
        except StaleError as error:
            return encode(Reply(state="failed", error=error.info))
        except NotFoundError:
            pass
        return await real(host, request)

    world.agents._answer = witness  # type: ignore[method-assign] # with a target
    return exporter


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "unknown to the database"])
async def test_an_epoch_that_another_host_has_at_the_target_is_granted_to_nobody_else(
    world: World, backup: Backup, target: FakeExporter, fenced: bool
) -> None:
    if fenced:
        await world.agents.join("h3")
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    await backup.take()
    if not fenced:
        await world.agents.join("h3")
    await world.do("vm.start", "web1")
    for to in ("h2", "h3"):
        assert (await world.do("vm.migrate", "web1", {"to": to})).error is None
    assert ((await lease(world)).host, (await lease(world)).epoch) == ("h3", 3)
    (volume,) = (await world.client.call("volume.list")).items
    (right,) = target._offers[volume.id].admissions
    assert (right.host, right.epoch) == ("h3", 3)
    session = target.login(volume.id, right)
    world.agents.silent.add("h3")
    await backup.restore()
    if fenced:
        await world.offline("h3")
        await world.client.call("host.fence", "h3", {"is_off": True})
    started = await world.do("vm.start", "web1")
    assert started.error is None
    assert ((await lease(world)).epoch, (await lease(world)).highest) == (4, 4)
    assert await said(world, "store.restored")
    with pytest.raises(UnavailableError):
        session.write()
    assert [one.epoch for one in target._offers[volume.id].admissions] == [4]


async def test_a_holder_that_the_database_does_not_know_is_waited_for(
    world: World, backup: Backup, target: FakeExporter
) -> None:
    """h1 has not heard that it was fenced, so its word is taken; h2 runs the VM since, and is silent."""
    await world.agents.join("h3")
    await world.create()
    await world.do("vm.stop", "web1", {"force": True})
    vm = await world.vm("web1")
    (volume,) = (await world.client.call("volume.list")).items
    right = plan.admission(b"of the same installation", vm.id, 2, HostName("h2"))
    await target.admit(volume.id, right)
    world.agents.claims("h2", vm.id, 2, Claim.HELD)
    world.agents.silent.add("h2")
    await world.restart()
    job = await world.client.call("vm.start", "web1", {"host": "h3"})
    await world.until(job, lambda one: "h2" in (one.waits_for))
    assert await said(world, "store.restored")
    world.agents.silent.discard("h2")
    await world.agents.hello("h2")
    done = await asyncio.wait_for(world.client.wait_job(job.id), 20)
    assert done.state is JobState.FAILED
    assert ((await lease(world)).host, (await lease(world)).epoch) == ("h2", 2)
    target.login(volume.id, right)
    assert ("h3", VM_START) not in world.agents.asked


async def test_a_move_that_is_given_up_leaves_the_source_its_disks(world: World, target: FakeExporter) -> None:
    await world.create()
    (volume,) = (await world.client.call("volume.list")).items
    (right,) = target._offers[volume.id].admissions
    session = target.login(volume.id, right)
    world.agents.failing.add(MIGRATION_PREPARE)
    assert (await world.do("vm.migrate", "web1", {"to": "h2"})).state is JobState.FAILED
    session.write()
    assert target._offers[volume.id].admissions == (right,)
    world.agents.failing.clear()
    assert (await world.do("vm.migrate", "web1", {"to": "h2"})).error is None
    assert [one.epoch for one in target._offers[volume.id].admissions] == [3]


async def test_an_agent_of_another_incarnation_is_not_meant(world: World) -> None:
    """Commands name the agent, and where the database stands."""
    await world.create()
    position = world.agents.seen["h1"]
    async with world.controller.store.read() as view:
        present = await view.lineage.position()
        assert await view.lineage.knows(position)
        assert not await view.lineage.knows(StorePosition(run=present.run, sequence=present.sequence + 1))
        assert not await view.lineage.knows(StorePosition(run="f" * 12, sequence=0))
    assert position.run == present.run


async def test_two_that_run_it_are_sorted_out_by_the_epoch(world: World) -> None:
    await world.create(disks=[])
    vm = await world.vm("web1")
    world.agents.claims("h2", vm.id, 5, Claim.HELD)
    words = encode(world.agents.introduction("h2"))
    await world.agents.bus.request(Subjects.hello("h2"), words, timeout=5)
    held = await lease(world)
    assert (held.host, held.epoch, held.highest) == ("h2", 5, 5)
    async with asyncio.timeout(20):
        while world.agents.journals["h1"][vm.id, 1].claim is not Claim.RELEASED:
            await asyncio.sleep(0.02)
    assert (await world.vm("web1")).status.state in (VmState.RUNNING, VmState.UNKNOWN)


@pytest.mark.parametrize("joins", ["before the release", "before the fresh epoch"])
async def test_a_holder_that_is_learned_of_during_a_start_keeps_the_vm(world: World, joins: str) -> None:
    """A host that joined after the backup was made says hello while the start goes on."""
    await world.create(disks=[])
    await world.do("vm.stop", "web1", {"force": True})
    vm = await world.vm("web1")
    world.agents.claims("h1", vm.id, 1, Claim.RELEASED)
    world.agents._released.add(("h1", vm.id, 1))
    real = world.agents._answer
    meanwhile = VM_RELEASE if joins == "before the fresh epoch" else VM_START

    async def answer(host: str, request: Any) -> bytes:
        if request.command == meanwhile.name and "h3" not in world.agents.journals:
            world.agents.claims("h3", vm.id, 5, Claim.COMMITTED)
            await world.agents.join("h3")
        return await real(host, request)

    world.agents._answer = answer  # type: ignore[method-assign] # it sees each command
    job = await world.do("vm.start", "web1")
    assert (job.state, "h3" in str(job.error)) == (JobState.FAILED, True)
    held = await lease(world)
    assert (held.host, held.epoch) == ("h3", 5)
    assert world.agents.journals["h3"][vm.id, 5].claim is Claim.COMMITTED
    assert ("h3", VM_RELEASE) not in world.agents.asked


async def test_claims_of_a_fenced_host_do_not_outrank_what_the_fence_allowed(world: World, backup: Backup) -> None:
    """The VM was started anew on h2 after the backup, and h2 burnt: it starts on h1, and that stays so."""
    await world.create(disks=[])
    await world.do("vm.stop", "web1", {"force": True})
    await backup.take()
    vm = await world.vm("web1")
    world.agents.claims("h1", vm.id, 1, Claim.RELEASED)
    world.agents._released.add(("h1", vm.id, 1))
    world.agents.claims("h2", vm.id, 2, Claim.RELEASED)
    world.agents.claims("h2", vm.id, 3, Claim.HELD)
    world.agents.silent.add("h2")
    await backup.restore()
    await world.offline("h2")
    await world.client.call("host.fence", "h2", {"is_off": True})
    assert (await world.do("vm.start", "web1")).state is JobState.DONE
    world.agents.asked.clear()
    world.agents.silent.clear()
    assert (await world.agents.hello("h2")).give_up == [LeaseEnd(vm=vm.id, epoch=3)]
    held = await lease(world)
    assert (held.host, held.epoch, held.highest) == ("h1", 2, 3)
    assert (await world.client.call("host.show", "h2")).status.state is HostState.FENCED
    assert ("h1", VM_RELEASE) not in world.agents.asked
    world.agents.claims("h2", vm.id, 3, Claim.RELEASED)
    await world.agents.hello("h2")
    assert (await world.client.call("host.show", "h2")).status.state is HostState.ONLINE


async def test_the_latest_claim_wins_a_vm_that_is_taken_back_in(
    world: World, backup: Backup, documents: list[VmDocument]
) -> None:
    """It was started anew on h2 after h1 was fenced; whose document comes first does not matter."""
    await backup.take()
    await world.create(disks=[])
    vm = await world.vm("web1")
    world.agents.claims("h2", vm.id, 7, Claim.HELD)
    world.agents.answers[VM_DOCUMENT] = documents[0]
    real = world.agents._answer

    async def answer(host: str, request: Any) -> bytes:
        if request.command == VM_DOCUMENT.name and host == "h2":
            await said(world, "vm.adopted")
        return await real(host, request)

    world.agents._answer = answer  # type: ignore[method-assign] # h1 answers first
    await backup.restore()
    assert (await said(world, "vm.adopted"))[0].data["host"] == "h1"
    async with asyncio.timeout(20):
        while (held := await lease(world)).host != "h2":
            await asyncio.sleep(0.02)
    assert (held.epoch, held.highest) == (7, 7)
    async with asyncio.timeout(20):
        while world.agents.journals["h1"][vm.id, 1].claim is not Claim.RELEASED:
            await asyncio.sleep(0.02)


async def test_a_document_is_asked_for_until_its_host_answers(
    world: World, backup: Backup, documents: list[VmDocument], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.controller.hosts.documents.AGAIN", 0.1)
    await backup.take()
    await world.create(disks=[])
    world.agents.answers[VM_DOCUMENT] = documents[0]
    real, asked = world.agents._answer, []

    async def answer(host: str, request: Any) -> bytes:
        if request.command == VM_DOCUMENT.name:
            asked.append(host)
            if len(asked) == 1:
                return encode(Reply(state="failed", error=UnavailableError("its disk does not answer").info))
        return await real(host, request)

    world.agents._answer = answer  # type: ignore[method-assign] # it sees each command
    await backup.restore()
    assert (await said(world, "vm.adopted"))[0].data["host"] == "h1"
    assert asked == ["h1", "h1"]


async def test_a_job_that_came_back_with_a_backup_undoes_nothing(world: World, backup: Backup) -> None:
    """The creation ended long ago, and its disk has been written to since."""
    held = world.agents.hold(VM_START)
    spec = {"image": "tiny", "memory": "1G", "disks": [{"pool": "p", "size": "1G"}]}
    job: Job = await world.client.call("vm.create", None, {"name": "web1", "spec": spec})
    await asyncio.wait_for(held.asked.wait(), 20)
    await backup.take()
    world.agents._held.pop(VM_START)
    assert (await asyncio.wait_for(world.client.wait_job(job.id), 20)).state is JobState.DONE
    vm = await world.vm("web1")
    world.agents.asked.clear()
    world.agents.silent |= {"h1", "h2"}
    await backup.restore()
    await world.until(job, lambda now: "h1, h2 to report" in now.waits_for)
    world.agents.silent.clear()
    for host in ("h1", "h2"):
        await world.agents.hello(host)
    job = await asyncio.wait_for(world.client.wait_job(job.id), 20)
    assert (job.state, "nothing is undone" in str(job.error)) == (JobState.FAILED, True)
    assert world.agents.asked == []
    assert (await world.vm("web1")).id == vm.id
    assert await world.owners() == {"web1-disk0": "web1"}
