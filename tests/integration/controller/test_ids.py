"""Names are for people: whatever a thing is called, and whatever else is called like it, jobs act on its id."""

from __future__ import annotations

from tests.integration.controller.conftest import World

from serai.schema.job import JobState


async def test_a_renamed_vm_is_deleted_with_its_volumes_whatever_they_are_called(world: World) -> None:
    await world.create()
    await world.do("volume.create", None, {"name": "web2-disk0", "spec": {"pool": "p", "size": "1G"}})
    assert (await world.do("vm.edit", "web1", {"rename": "web2"})).state is JobState.DONE
    assert await world.owners() == {"web1-disk0": "web2", "web2-disk0": None}
    await world.do("vm.delete", "web2", query={"force": True})
    assert await world.owners() == {"web2-disk0": None}


async def test_a_volume_called_like_anothers_id_is_not_deleted_in_its_place(world: World) -> None:
    for name in ("one", "two"):
        await world.do("volume.create", None, {"name": name, "spec": {"pool": "p", "size": "1G"}})
    async with world.controller.store.transaction() as tx:
        one, two = await tx.volumes.find("one"), await tx.volumes.find("two")
        await tx.volumes.replace(two.model_copy(update={"name": one.id}))
    assert (await world.do("volume.delete", "one")).state is JobState.DONE
    assert await world.owners() == {one.id: None}


async def test_a_vm_called_like_anothers_id_is_not_deleted_in_its_place(world: World) -> None:
    for name in ("web1", "web2"):
        await world.create(name, running=False)
    async with world.controller.store.transaction() as tx:
        one, two = await tx.vms.find("web1"), await tx.vms.find("web2")
        await tx.vms.replace(two.model_copy(update={"name": one.id}))
    assert (await world.do("vm.delete", "web1")).state is JobState.DONE
    assert [vm.id for vm in (await world.client.call("vm.list")).items] == [two.id]
    assert await world.owners() == {"web2-disk0": one.id}


async def test_a_vm_takes_the_volumes_along_that_were_made_for_it_and_no_others(world: World) -> None:
    disk = {"pool": "p", "size": "1G"}
    await world.do("volume.create", None, {"name": "web1-disk9", "spec": disk})
    await world.create(running=False, disks=[disk, {**disk, "keep": True}, {"volume": "web1-disk9"}])
    disks = (await world.client.call("vm.show", "web1")).model_dump(mode="json")["spec"]["disks"]
    await world.do("vm.edit", "web1", {"disks": [*disks, disk]})
    await world.do("vm.clone", "web1", {"name": "web2"})
    owners = {volume.name: volume.status.owner for volume in (await world.client.call("volume.list")).items}
    assert owners.pop("web1-disk9") is None
    mine = {f"web1-disk{number}" for number in range(3)}
    assert owners == dict.fromkeys(mine, "web1") | {f"web2-disk{number}": "web2" for number in range(4)}
    await world.do("vm.delete", "web1")
    assert {name for name, vm in (await world.owners()).items() if vm is None} == {"web1-disk1", "web1-disk9"}
    await world.do("vm.delete", "web2")
    assert await world.owners() == {"web1-disk1": None, "web1-disk9": None}


async def test_a_disk_that_a_vm_has_given_up_stays_when_the_vm_goes(world: World) -> None:
    disk = {"pool": "p", "size": "1G"}
    await world.create(running=False, disks=[disk, disk])
    disks = (await world.client.call("vm.show", "web1")).model_dump(mode="json")["spec"]["disks"]
    await world.do("vm.edit", "web1", {"disks": disks[:1]})
    assert (await world.client.call("volume.show", "web1-disk1")).status.owner is None
    await world.do("vm.edit", "web1", {"disks": [*disks[:1], {"volume": "web1-disk1"}]})
    await world.do("vm.delete", "web1")
    assert await world.owners() == {"web1-disk1": None}
