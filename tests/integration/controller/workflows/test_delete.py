"""Deletions."""

from __future__ import annotations

from tests.integration.controller.conftest import World

from serai.schema.job import JobState


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
