"""A host that is away, or gone: what was on it is forgotten by force, and cleared away if it comes back."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.controller.conftest import World

from serai.schema.commands.image import IMAGE_DELETE
from serai.schema.commands.pool import POOL_CLOSE
from serai.schema.commands.volume import VOLUME_DELETE
from serai.schema.errors import UnavailableError
from serai.schema.job import Job, JobState

FORCE = {"force": True}
NAMES = {"volume": "v", "pool": "p2", "image": "tiny"}


async def gone(world: World) -> dict[str, Job]:
    """h2 goes away with a pool, a volume and a copy of an image; all are deleted. Returns what is left to do."""
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
    left: list[Job] = [job for job in (await world.client.call("job.list")).items if job.kind == "host.clean"]
    assert {job.state.ended for job in left} == {False}
    return {job.params["what"].partition(" ")[0]: job for job in left}


async def test_what_was_forgotten_is_removed_when_the_host_is_back(world: World) -> None:
    left = await gone(world)
    assert left.keys() == NAMES.keys()
    assert await world.owners() == {}
    await world.restart()
    assert "h2 to come back" in (await world.until(left["volume"], lambda job: bool(job.waits_for))).waits_for
    world.agents.asked.clear()
    world.agents.silent.clear()
    await world.agents.join("h2")
    for job in left.values():
        assert (await asyncio.wait_for(world.client.wait_job(job.id), 20)).state is JobState.DONE
    # A pool is closed once its volumes are gone. A hello has whoever waits ask again.
    assert list(dict.fromkeys(world.agents.asked)) == [
        ("h2", kind) for kind in (VOLUME_DELETE, POOL_CLOSE, IMAGE_DELETE)
    ]


async def test_a_host_that_never_comes_back_takes_it_along(world: World) -> None:
    left = await gone(world)
    await world.client.call("host.delete", "h2")
    for job in left.values():
        assert (await asyncio.wait_for(world.client.wait_job(job.id), 20)).state.ended
    assert [host.name for host in (await world.client.call("host.list")).items] == ["h1"]


async def test_what_is_left_to_do_may_be_cancelled(world: World) -> None:
    left = await gone(world)
    await world.client.call("job.cancel", left["image"].id)
    await world.client.call("job.cancel", left["volume"].id)
    for kind in ("image", "volume"):
        ended = await asyncio.wait_for(world.client.wait_job(left[kind].id), 20)
        assert ended.state is JobState.CANCELLED
