"""A host that is away, or gone: what was on it is forgotten by force, and cleared away if it comes back."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.controller.conftest import World

from serai.schema.commands.image import IMAGE_DELETE
from serai.schema.commands.pool import POOL_CLOSE
from serai.schema.commands.volume import VOLUME_DELETE
from serai.schema.errors import UnavailableError
from serai.schema.job import JobState

FORCE = {"force": True}
NAMES = {"volume": "v", "pool": "p2", "image": "tiny"}


async def gone(world: World) -> None:
    """h2 goes away with a pool, a volume and a copy of an image; all are deleted."""
    await world.do("pool.create", None, {"name": "p2", "spec": {"host": "h2"}})
    await world.do("volume.create", None, {"name": "v", "spec": {"pool": "p2", "size": "1G"}})
    await world.create("web1", host="h2")
    await world.do("vm.delete", "web1", query=FORCE)
    await world.offline("h2")
    world.agents.asked.clear()
    for kind, name in NAMES.items():
        with pytest.raises(UnavailableError, match="offline"):
            await world.client.call(f"{kind}.delete", name)
        job = await world.do(f"{kind}.delete", name, query=FORCE)
        assert (job.state, "h2 removes it when it is back" in job.message) == (JobState.DONE, True), job.error
    assert ("h1", IMAGE_DELETE) in world.agents.asked
    assert await left(world) == [f"{kind} {name}" for kind, name in NAMES.items()]


async def left(world: World) -> list[str]:
    """What h2 has yet to clear away, as it is shown."""
    return [one.what for one in (await world.client.call("host.show", "h2")).status.leftovers]


async def test_what_was_forgotten_is_removed_when_the_host_is_back(world: World) -> None:
    await gone(world)
    assert await world.owners() == {}
    await world.restart()
    world.agents.asked.clear()
    world.agents.silent.clear()
    await world.agents.hello("h2")
    async with asyncio.timeout(20):
        while await left(world):
            await asyncio.sleep(0.02)
    # A pool is closed once its volumes are gone. A hello has whoever waits ask again.
    assert list(dict.fromkeys(world.agents.asked)) == [
        ("h2", kind) for kind in (VOLUME_DELETE, POOL_CLOSE, IMAGE_DELETE)
    ]


async def test_a_host_that_never_comes_back_takes_it_along(world: World) -> None:
    await gone(world)
    await world.client.call("host.delete", "h2")
    assert [host.name for host in (await world.client.call("host.list")).items] == ["h1"]
    async with world.controller.store.read() as view:
        assert await view.leftovers.all() == []
