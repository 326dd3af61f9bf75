"""Restarts."""

from __future__ import annotations

from tests.integration.controller.conftest import World

from serai.schema.commands.vm import VM_START, VM_STOP
from serai.schema.job import JobState
from serai.schema.vm import VmState


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
