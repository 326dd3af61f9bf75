"""Real processes, killed in a migration's last two phases: while the last state is sent, and once all of it was.

How the move is held in them is told in `stand.py`.
"""

from __future__ import annotations

import os
import signal

import pytest

from .conftest import Lab
from .looking import until
from .stand import LITTLE, MUCH, held


async def test_destination_qemu_killed_while_the_last_state_is_sent(lab: Lab) -> None:
    async with held(lab, LITTLE) as stand:
        assert not stand.sent()
        os.kill(stand.destination, signal.SIGKILL)
        await stand.stays()
        assert not stand.sent()


async def test_destination_qemu_killed_with_all_sent_and_nothing_committed(lab: Lab) -> None:
    async with held(lab, MUCH) as stand:
        await stand.waits_for("h2's journal: it has not decided yet")
        os.kill(stand.destination, signal.SIGKILL)
        await stand.stays(reason="signal 9")


@pytest.mark.parametrize("role", ["agent h1", "agent h2", "controller ctl"])
async def test_killed_with_all_sent_and_the_state_arrives_meanwhile(lab: Lab, role: str) -> None:
    async with held(lab, MUCH) as stand:
        await lab.kill(role)
        stand.thaw(stand.destination)
        if role != "agent h2":
            await until(lambda: stand.claim() == "committed", "the destination's commit")
        await lab.restart(role)
        await stand.moves()


async def test_the_sources_agent_killed_with_all_sent_and_the_state_arrives_afterwards(lab: Lab) -> None:
    async with held(lab, MUCH) as stand:
        await lab.kill("agent h1")
        await lab.restart("agent h1")
        assert stand.claim() == "offered"
        stand.thaw(stand.destination)
        await stand.moves()


@pytest.mark.parametrize("role", ["agent h2", "controller ctl"])
async def test_killed_with_all_sent_and_nobody_can_wait_for_the_state(lab: Lab, role: str) -> None:
    async with held(lab, MUCH) as stand:
        await lab.kill(role)
        await lab.restart(role)
        # A restarted controller gives the move up; a restarted agent cannot answer for a QEMU that is silent.
        await until(lambda: stand.claim() == "abandoned", "the offer to be turned down")
        stand.thaw_all()
        await stand.stays(reason="restarted" if role == "controller ctl" else "stayed on h1")
