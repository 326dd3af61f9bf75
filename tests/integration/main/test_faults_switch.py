"""Real processes, killed in a migration's last two phases: while the last state is sent, once all of it was, and right
after the commit.

How the move is held in them is told in `stand.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import pytest
from tests.support.lab import Lab
from tests.support.looking import PATIENCE, until

from serai.schema.job import JobState
from serai.schema.vm import RestartPolicy, Vm, VmState

from .cli import Serai
from .stand import LITTLE, MUCH, buffers, held, stand
from .terminal import Shell


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


BLOCK = 4096
AROUND = 4096
"""Blocks after which the guest's disk writer begins anew."""


async def some_written(lab: Lab, vm: Vm) -> int:
    """The guest's disk writer is at work: how many blocks are known to be written by now."""
    guest = lab.guest(vm)
    await guest.write_disk()
    async with asyncio.timeout(PATIENCE):
        while (count := await guest.disk()).written < 100:
            assert count.errors == 0
    return count.written


async def holds(lab: Lab, serai: Serai, vm: Vm, written: int) -> None:
    """Each of the first `written` blocks is on the volume, or a later one in its place; the guest reads the same."""
    pool = await lab.client.call("pool.show", "shared0")
    volume = await lab.client.call("volume.show", f"{vm.name}-disk0")
    # The pool's host has a mount namespace of its own.
    folder = Path(f"/proc/{lab.record(f'agent {pool.spec.host}').pid}/root{pool.status.path}")
    content = (folder / f"{volume.id}.raw").read_bytes()[: BLOCK * AROUND]
    numbers = [int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content), BLOCK)]
    for number in range(max(0, written - AROUND), written):
        found = numbers[number % AROUND]
        assert found >= number, f"block {number} is lost: {found} is there"
        assert found % AROUND == number % AROUND
    async with Shell(serai.argv, vm.name) as shell:
        seen = await shell.ask(f"dd if=/dev/vda bs={BLOCK} count={AROUND} 2>/dev/null | md5sum")
    assert seen.split()[0] == hashlib.md5(content).hexdigest()


async def test_killed_right_after_the_commit_it_starts_again_with_its_disk(lab: Lab) -> None:
    """The crash is the VM's own: its job is done, and its policy starts it where it was, from what it had written."""
    async with stand(lab, "h1", "h2", restart=RestartPolicy.ON_FAILURE) as move:
        written = await some_written(lab, move.vm)
        async with buffers(lab, MUCH):
            await move.switch()
        await until(move.sent, "the source to have sent all")
        move.thaw(move.destination)
        await until(lambda: move.claim() == "committed", "the destination's commit")
        os.kill(move.destination, signal.SIGKILL)
        ended = await move.ended()
        assert ended.state is JobState.DONE, ended.error
        again = await lab.until(
            move.vm.name, lambda now: now.status.state is VmState.RUNNING and now.status.restarts == 1
        )
    assert (again.status.host, again.status.epoch) == ("h2", move.vm.status.epoch + 1)
    assert "signal 9" in again.status.reason
    await lab.guest(move.vm).up()
    assert await lab.guest(move.vm).boot_id() != move.boot_id
    assert {host: len(pids) for host, pids in lab.qemus(move.vm).items()} == {"h1": 0, "h2": 1, "h3": 0}
    await holds(lab, Serai(lab.name), move.vm, written)
