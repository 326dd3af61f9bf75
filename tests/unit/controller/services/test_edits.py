"""What an edit's job remembers."""

from __future__ import annotations

import copy

from tests.unit.controller.conftest import World

from serai.controller.services import edits


async def test_taking_back_leaves_the_memory_as_it_is(world: World) -> None:
    """Else an undo that is tried again would find names where the ids of its volumes were."""
    vm = await world.create("web1", disks=[{"pool": "shared0", "size": "1G"}])
    async with world.store.transaction() as tx:
        bare = vm.model_copy(update={"spec": vm.spec.model_copy(update={"disks": []})})
        await tx.vms.replace(bare)
        state = await edits.record(tx, vm, bare)
    kept = copy.deepcopy(state)
    async with world.store.transaction() as tx:
        assert await edits.take_back_vm(tx, vm.id, state.changes) == []
        assert (await tx.vms.get(vm.id)).spec == vm.spec
    assert state == kept
