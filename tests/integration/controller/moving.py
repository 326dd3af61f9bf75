"""A move whose agents answer as a test has them."""

from __future__ import annotations

import asyncio

from tests.integration.controller.conftest import World

from serai.schema.commands.migration import MIGRATION_START
from serai.schema.job import Job
from serai.schema.lease import Lease


async def lease(world: World) -> Lease:
    vm = await world.vm("web1")
    async with world.controller.store.read() as view:
        return await view.leases.need(vm.id)


async def begun(world: World, **spec: str) -> Job:
    """A move from h1 to h2 whose source has not said how it ends."""
    await world.create(**spec)
    held = world.agents.hold(MIGRATION_START)
    job: Job = await world.client.call("vm.migrate", "web1", {"to": "h2"})
    await asyncio.wait_for(held.asked.wait(), 20)
    await world.moving("web1")
    return job


async def ended(world: World, job: Job) -> Job:
    return await asyncio.wait_for(world.client.wait_job(job.id), 30)
