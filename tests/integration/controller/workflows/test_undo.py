"""An edit that fails, is cancelled or interrupted: all is as it was before, or it says what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.controller.conftest import World

from serai.schema.commands.base import AnyCommand
from serai.schema.commands.vm import VM_CONFIGURE, VM_PAUSE, ConfigureResult
from serai.schema.commands.volume import (
    VOLUME_ADMIT,
    VOLUME_CREATE,
    VOLUME_DELETE,
    VOLUME_GROW,
    VOLUME_MEASURE,
    VolumeSize,
)
from serai.schema.errors import ConflictError
from serai.schema.job import Job, JobState
from serai.schema.vm import Vm, VmState
from serai.schema.volume import Volume, VolumeState

GIB = 1 << 30


class Edit:
    """A VM web1 on h1 with a disk and a VNIC, and an edit of about everything."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.before: Vm
        self.owners: dict[str, str | None] = {}

    async def begin(self) -> None:
        self.world.agents.failing.clear()
        await self.world.create("web1", disks=[{"pool": "p", "size": "1G"}, {"pool": "p", "size": "1G"}])
        disk = {"name": "spare", "spec": {"pool": "p", "size": "2G"}}
        assert (await self.world.do("volume.create", None, disk)).state is JobState.DONE
        self.before = await self.world.vm("web1")
        self.owners = await self.world.owners()

    async def body(self) -> dict[str, Any]:
        spec = self.before.spec.model_dump(mode="json")
        return {
            "rename": "web2",
            "cpus": 2,
            "labels": {"a": "b"},
            "cloud_init": {"user_data": "#cloud-config\npassword: hunter2"},
            "disks": [spec["disks"][0], {"pool": "p", "size": "3G"}, {"volume": "spare"}],
            "vnics": [*spec["vnics"], {"network": "lan"}],
        }

    async def submit(self) -> Job:
        job: Job = await self.world.client.call("vm.edit", "web1", await self.body())
        return job

    async def ended(self, job: Job) -> Job:
        return await asyncio.wait_for(self.world.client.wait_job(job.id), 20)

    async def is_as_before(self) -> None:
        """Spec, name, labels, addresses; and nobody has more or less than he had."""
        after = await self.world.vm("web1")
        assert after.spec == self.before.spec
        assert (after.labels, after.status.addresses) == (self.before.labels, self.before.status.addresses)
        assert after.generation > self.before.generation
        assert await self.world.owners() == self.owners
        assert (await self.world.client.call("network.show", "lan")).status.addresses_used == 1

    async def volume(self, name: str) -> Volume:
        found: Volume = await self.world.client.call("volume.show", name)
        return found


@pytest.fixture
async def edit(world: World) -> Edit:
    made = Edit(world)
    await made.begin()
    return made


@pytest.mark.parametrize("command", [VOLUME_CREATE, VOLUME_ADMIT, VM_CONFIGURE], ids=str)
async def test_an_edit_that_fails_is_taken_back(edit: Edit, command: AnyCommand) -> None:
    edit.world.agents.failing_once.add(command)
    job = await edit.ended(await edit.submit())
    assert (job.state, job.error and job.error.message) == (JobState.FAILED, f"{command} failed")
    assert job.message == "taken back"
    await edit.is_as_before()
    assert (await edit.world.vm("web1")).status.conditions == []
    assert ("h1", VOLUME_DELETE) in edit.world.agents.asked
    # The VM's host is told only of what it may have heard.
    told = [sent for _, sent in edit.world.agents.asked].count(VM_CONFIGURE)
    assert told == (2 if command is VM_CONFIGURE else 0)
    job = await edit.ended(await edit.submit())
    assert job.state is JobState.DONE, job.error


async def test_what_a_job_remembers_is_shown_to_nobody_and_goes_with_it(edit: Edit) -> None:
    make = edit.world.agents.hold(VOLUME_CREATE)
    job = await edit.submit()
    await asyncio.wait_for(make.asked.wait(), 20)
    assert "hunter2" not in (await edit.world.client.call("job.show", job.id)).model_dump_json()
    edit.world.agents.release(VOLUME_CREATE, None)
    assert (await edit.ended(job)).state is JobState.DONE
    async with edit.world.controller.store.read() as view:
        assert "hunter2" not in str(await view.jobs.record(job.id))


async def test_an_edit_that_is_cancelled_is_taken_back(edit: Edit) -> None:
    """While the pool's host does not answer, as one that is gone for good: the volume is its own to lose."""
    edit.world.agents.silent.add("h1")
    job = await edit.submit()
    await edit.world.client.call("job.cancel", job.id)
    await edit.world.offline("h1")
    job = await edit.ended(job)
    assert job.state is JobState.CANCELLED
    assert "serai volume delete web1-disk2" in job.message
    left = [name for name in await edit.world.owners() if name not in edit.owners]
    assert len(left) == 1
    volume = await edit.volume(left[0])
    assert (volume.status.state, volume.status.vm) == (VolumeState.FAILED, None)
    assert "h1 is offline" in volume.status.reason
    edit.owners[left[0]] = None
    await edit.is_as_before()


async def test_an_edit_that_never_began_is_taken_back(edit: Edit) -> None:
    stop = edit.world.agents.hold(VM_PAUSE)
    ahead = await edit.world.client.call("vm.pause", "web1")
    await asyncio.wait_for(stop.asked.wait(), 20)
    job = await edit.submit()
    assert (await edit.world.client.call("job.cancel", job.id)).state in (JobState.CANCELLING, JobState.UNDOING)
    edit.world.agents.failing_once.add(VM_PAUSE)
    edit.world.agents._held.pop(VM_PAUSE).answer.set_exception(ConflictError("no"))
    await edit.ended(ahead)
    assert (await edit.ended(job)).state is JobState.CANCELLED
    await edit.is_as_before()


@pytest.mark.parametrize("command", [VOLUME_CREATE, VM_CONFIGURE], ids=str)
async def test_a_restarted_controller_goes_on_with_an_edit(edit: Edit, command: AnyCommand) -> None:
    held = edit.world.agents.hold(command)
    job = await edit.submit()
    await asyncio.wait_for(held.asked.wait(), 20)
    edit.world.agents.release(command, ConfigureResult() if command is VM_CONFIGURE else None)
    await edit.world.restart()
    assert (await edit.ended(job)).state is JobState.DONE
    assert (await edit.world.vm("web2")).spec.cpus == 2
    assert len(await edit.world.owners()) == 4


async def test_a_restarted_controller_goes_on_taking_back(edit: Edit) -> None:
    edit.world.agents.failing_once.add(VM_CONFIGURE)
    drop = edit.world.agents.hold(VOLUME_DELETE)
    job = await edit.submit()
    await asyncio.wait_for(drop.asked.wait(), 20)
    edit.world.agents.release(VOLUME_DELETE, None)
    await edit.world.restart()
    assert (await edit.ended(job)).state is JobState.FAILED
    await edit.is_as_before()


async def test_what_a_vm_does_not_give_back_is_said(edit: Edit) -> None:
    """Its host refuses to take the edit, and to take it back: the new disks may be open until the VM restarts."""
    edit.world.agents.failing.add(VM_CONFIGURE)
    job = await edit.ended(await edit.submit())
    assert job.state is JobState.FAILED
    after = await edit.world.vm("web1")
    assert after.spec == edit.before.spec
    assert "does not take it back" in after.status.conditions[0].message
    assert "does not take it back" in job.message
    assert await edit.world.owners() != edit.owners
    edit.world.agents.failing.clear()
    await edit.world.do("vm.stop", "web1", {"force": True})
    await edit.world.do("vm.start", "web1")
    assert (await edit.world.vm("web1")).status.conditions == []
    owners = await edit.world.owners()
    assert {name: owners[name] for name in edit.owners} == edit.owners
    assert {vm for name, vm in owners.items() if name not in edit.owners} == {None}


async def test_an_address_that_another_vm_got_meanwhile_is_its_own(edit: Edit) -> None:
    vnic = edit.before.spec.vnics[0].model_dump(mode="json")
    make = edit.world.agents.hold(VOLUME_CREATE)
    body = {"disks": (await edit.body())["disks"], "vnics": [{"network": "lan", "ip": "10.77.0.99"}]}
    job = await edit.world.client.call("vm.edit", "web1", body)
    await asyncio.wait_for(make.asked.wait(), 20)
    other = {"image": "tiny", "memory": "1G", "running": False, "vnics": [{"network": "lan", "ip": vnic["ip"]}]}
    await edit.world.do("vm.create", None, {"name": "other", "spec": other})
    edit.world.agents.failing_once.add(VM_CONFIGURE)
    edit.world.agents.release(VOLUME_CREATE, None)
    job = await edit.ended(job)
    assert job.message == f"taken back; stays: vnics ({vnic['ip']} is another VM's now)"
    after = await edit.world.vm("web1")
    assert (after.spec.disks, after.status.addresses) == (edit.before.spec.disks, ["10.77.0.99"])
    assert await edit.world.owners() == edit.owners


async def test_lists_are_not_changed_while_an_edit_may_take_them_back(edit: Edit) -> None:
    make = edit.world.agents.hold(VOLUME_CREATE)
    job = await edit.submit()
    await asyncio.wait_for(make.asked.wait(), 20)
    with pytest.raises(ConflictError, match="being changed") as caught:
        await edit.world.client.call("vm.edit", "web2", {"vnics": []})
    assert f"serai job cancel {job.id}" in (caught.value.info.remedy or "")
    # What is no list goes on, and is no business of the one that is taken back.
    later = await edit.world.client.call("vm.edit", "web2", {"description": "mine"})
    edit.world.agents.failing_once.add(VM_CONFIGURE)
    edit.world.agents.release(VOLUME_CREATE, None)
    assert (await edit.ended(job)).state is JobState.FAILED
    assert (await edit.ended(later)).state is JobState.DONE
    await edit.is_as_before()
    assert (await edit.world.vm("web1")).description == "mine"


async def test_a_clone_that_fails_or_never_began_leaves_nothing(edit: Edit) -> None:
    await edit.world.do("vm.stop", "web1", {"force": True})
    edit.world.agents.failing_once.add(VOLUME_CREATE)
    assert (await edit.world.do("vm.clone", "web1", {"name": "copy"})).state is JobState.FAILED
    make = edit.world.agents.hold(VOLUME_CREATE)
    ahead = await edit.world.client.call("vm.clone", "web1", {"name": "first"})
    await asyncio.wait_for(make.asked.wait(), 20)
    job = await edit.world.client.call("vm.clone", "web1", {"name": "copy"})
    await edit.world.client.call("job.cancel", job.id)
    edit.world.agents.release(VOLUME_CREATE, None)
    assert (await edit.ended(ahead)).state is JobState.DONE
    assert (await edit.ended(job)).state is JobState.CANCELLED
    assert {vm.name for vm in (await edit.world.client.call("vm.list")).items} == {"web1", "first"}
    assert not [name for name in await edit.world.owners() if name.startswith("copy")]


@pytest.mark.parametrize("real", [1, 2])
@pytest.mark.parametrize("name", ["web1-disk0", "spare"])
async def test_a_growth_that_fails_says_what_is_true(edit: Edit, name: str, real: int) -> None:
    """`real`: the size that the host says the volume has after it has failed, in times of what it was."""
    before = await edit.volume(name)
    size = before.spec.size
    edit.world.agents.failing_once.add(VOLUME_GROW)
    edit.world.agents.answers[VOLUME_MEASURE] = VolumeSize(size=real * size)
    job = await edit.world.do("volume.edit", name, {"size": 2 * size, "labels": {"a": "b"}})
    assert job.state is JobState.FAILED
    after = await edit.volume(name)
    assert (after.spec.size, after.status.size, after.labels) == (real * size, real * size, {})
    assert bool(after.status.reason) == (real == 2)
    if name == "web1-disk0":
        assert (await edit.world.vm("web1")).spec.disks[0].size == real * size
    assert job.message == "taken back" + (
        f"; stays: size ({2 * size // GIB}G: the host has grown it, and volumes do not shrink)" if real == 2 else ""
    )
    assert (await edit.world.vm("web1")).status.state is VmState.RUNNING
    edit.world.agents.asked.clear()
    assert (await edit.world.do("volume.edit", name, {"size": 2 * size})).state is JobState.DONE
    assert ("h1", VOLUME_GROW) in edit.world.agents.asked
    after = await edit.volume(name)
    assert (after.spec.size, after.status.size, after.status.reason) == (2 * size, 2 * size, "")


async def test_a_growth_that_its_vm_was_not_told_of_stays(edit: Edit) -> None:
    edit.world.agents.answers[VOLUME_MEASURE] = VolumeSize(size=2 * GIB)
    edit.world.agents.failing_once.add(VM_CONFIGURE)
    job = await edit.world.do("volume.edit", "web1-disk0", {"size": 2 * GIB})
    assert job.state is JobState.FAILED
    assert "the host has grown it" in job.message
    after = await edit.volume("web1-disk0")
    assert (after.spec.size, after.status.size) == (2 * GIB, 2 * GIB)


async def test_a_growth_of_which_the_host_says_nothing_is_not_promised(edit: Edit) -> None:
    edit.world.agents.failing |= {VOLUME_GROW, VOLUME_MEASURE}
    job = await edit.world.do("volume.edit", "spare", {"size": 4 * GIB})
    assert (job.state, job.message) == (
        JobState.FAILED,
        "taken back; whether it has grown is not known: volume.measure failed",
    )
    assert (await edit.volume("spare")).spec.size == 2 * GIB


async def test_a_growth_that_never_began_is_taken_back(edit: Edit) -> None:
    held = edit.world.agents.hold(VM_CONFIGURE)
    ahead = await edit.world.client.call("vm.edit", "web1", {"cpus": 2})
    await asyncio.wait_for(held.asked.wait(), 20)
    job = await edit.world.client.call("volume.edit", "web1-disk0", {"size": 2 * GIB})
    await edit.world.client.call("job.cancel", job.id)
    edit.world.agents.release(VM_CONFIGURE, ConfigureResult())
    await edit.ended(ahead)
    assert (await edit.ended(job)).state is JobState.CANCELLED
    assert (await edit.volume("web1-disk0")).spec.size == GIB
    assert ("h1", VOLUME_GROW) not in edit.world.agents.asked
