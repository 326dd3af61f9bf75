"""Creations: all that a VM needs is there afterwards, or nothing."""

from __future__ import annotations

import pytest
from tests.integration.controller.conftest import World

from serai.schema.commands.base import AnyCommand
from serai.schema.commands.vm import VM_START
from serai.schema.commands.volume import VOLUME_ADMIT, VOLUME_CREATE
from serai.schema.job import JobState


@pytest.mark.parametrize("command", [VOLUME_CREATE, VOLUME_ADMIT, VM_START], ids=str)
async def test_a_creation_that_fails_leaves_nothing(world: World, command: AnyCommand) -> None:
    world.agents.failing.add(command)
    job = await world.create()
    assert (job.state, job.error and job.error.message) == (JobState.FAILED, f"{command} failed")
    assert await world.owners() == {}
    assert (await world.client.call("vm.list")).items == []
    assert (await world.client.call("network.show", "lan")).status.addresses_used == 0
    world.agents.failing.clear()
    assert (await world.create()).state is JobState.DONE
    assert await world.owners() == {"web1-disk0": "web1"}


async def test_a_start_says_that_the_vm_is_emulated_and_why(world: World) -> None:
    job = await world.create()
    assert job.result is not None
    assert job.result["warning"] == "emulated (tcg): there is no /dev/kvm"
