"""Edits that go well; `test_undo` has those that do not."""

from __future__ import annotations

from tests.integration.controller.conftest import World

from serai.schema.job import JobState


async def test_a_disk_that_was_removed_is_nobodys(world: World) -> None:
    await world.create()
    disks = [disk.model_dump(mode="json") for disk in (await world.vm("web1")).spec.disks]
    await world.do("vm.edit", "web1", {"disks": [*disks, {"pool": "p", "size": "1G"}]})
    assert await world.owners() == {"web1-disk0": "web1", "web1-disk1": "web1"}
    await world.do("vm.edit", "web1", {"disks": disks})
    assert await world.owners() == {"web1-disk0": "web1", "web1-disk1": None}
    assert (await world.do("volume.delete", "web1-disk1")).state is JobState.DONE
