"""Random faults: agents, controller, bus and QEMUs are killed, stopped and continued while VMs move, start and stop.

What must hold all along, for each VM: never two running copies, and never none without a recorded reason
(`tests/support/invariant.py`); and no write that its guest's disk had acknowledged is lost
(`tests/support/faults/blocks.py`). After each round of actions, and at the end, everything is repaired: then all jobs
end, each VM runs, and in the end all are deleted and nothing of them is left.

The actions follow from a seed (`tests/support/faults/actions.py`); the times at which they meet the lab do not. The
seed is the commit's, unless `--seed N` is given. A fixed one would try the same sequence for ever, and find nothing
new. One from the clock would fail for people whose change has nothing to do with it, and not again when they look.
With the commit's, each change tries another sequence, and whoever runs the tests of that commit again tries the same
one. A failure says which seed it was, shows every action with its time, and where the lab's logs are.

`script/test` plays a minute, `script/test --long` ten, and `script/test --soak TIME` as long as it is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from tests.support.faults.actions import KNOWN, Action, Verb, actions
from tests.support.faults.player import Player
from tests.support.faults.record import keep
from tests.support.lab import Lab, standing

from serai.client import context as contexts
from serai.client.http import Client

MINUTE = 60.0
ANSWER = 10.0
"""Seconds for which a request waits: the controller may stand still."""
BESIDE = 1800.0
"""Seconds that all may take beside the actions, on a busy machine: each wait has its own, shorter limit."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    told = metafunc.config.option.soak
    ten = pytest.param(10 * MINUTE, marks=pytest.mark.long)
    metafunc.parametrize("duration", [MINUTE, ten] if told is None else [told], ids=lambda seconds: f"{seconds:g}s")


@pytest.fixture
def lab_of_its_own() -> Iterator[str]:
    """A lab that no other test stands on."""
    with standing() as name:
        yield name


@pytest.mark.timeout(0)  # it goes on for as long as it is told, and has limits of its own
async def test_random_faults(lab_of_its_own: str, duration: float, pytestconfig: pytest.Config) -> None:
    seed: int = pytestconfig.option.seed
    context = contexts.resolve(lab_of_its_own)[1]
    async with Client(context) as patient, Client(context, timeout=ANSWER) as client:
        player = Player(Lab(lab_of_its_own, patient), client)
        player.say(f"{duration:g} seconds of the actions of --seed {seed}")
        for exclusion in KNOWN:
            player.say(f"left out: {exclusion.defect}")
        try:
            async with asyncio.timeout(duration + BESIDE):
                await play(player, seed, duration)
        except BaseException as error:
            place = await keep(player.log, player.lab, seed, error)
            player.say(f"FAILED with --seed {seed}: {error}")
            player.say(f"the lab's logs and all that was done: {place}")
            raise


async def play(player: Player, seed: int, duration: float) -> None:
    async with player.standing():
        end = time.monotonic() + duration
        last = None
        for action in actions(seed):
            if time.monotonic() >= end:
                break
            await player.play(action)
            last = action.verb
        if last is not Verb.SETTLE:
            await player.play(Action(Verb.SETTLE))
    await player.close()
