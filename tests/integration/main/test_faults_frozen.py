"""Agents and QEMUs that stand still (SIGSTOP) beside others that work.

The destination's agent stands still while its QEMU has all state: what happens then is decided once, when it wakes. How
the move is held until then is told in `stand.py`. A QEMU that stands still concerns its own VM only.
"""

from __future__ import annotations

import os
import select
import signal

import pytest
from tests.support.lab import Lab
from tests.support.looking import streaming, until

from serai.schema.errors import ConflictError
from serai.schema.vm import VmState

from .stand import MUCH, Stand, held


async def loaded_unseen(stand: Stand) -> int:
    """Let the destination's QEMU load the state while nobody watches; its pid. Its agent is frozen."""
    agent, qemu = stand.lab.record("agent h2").pid, stand.destination
    assert streaming(qemu)
    stand.freeze(agent)
    stand.thaw(qemu)
    await until(lambda: not streaming(qemu), "the destination's QEMU to have loaded the state")
    assert stand.claim() == "offered"
    return qemu


async def kill(pid: int) -> None:
    """kill -9, and wait until all its threads are over. Its parent may stand still, so that nobody waits for it."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        await until(lambda: select.select([pidfd], [], [], 0)[0], "the end of a killed process")
    finally:
        os.close(pidfd)


async def test_loaded_while_its_agent_stands_still(lab: Lab) -> None:
    async with held(lab, MUCH) as stand:
        await loaded_unseen(stand)
        stand.thaw_all()
        await stand.moves()


@pytest.mark.parametrize("agent", ["goes on", "is killed too"])
async def test_loaded_and_killed_while_its_agent_stands_still(lab: Lab, agent: str) -> None:
    async with held(lab, MUCH) as stand:
        qemu = await loaded_unseen(stand)
        await kill(qemu)
        if agent == "goes on":
            stand.thaw_all()
        else:
            await lab.kill("agent h2")
            await lab.restart("agent h2")
        # Nothing was committed, and the source has the VM still.
        await stand.stays(reason="the destination's QEMU")


async def test_an_agent_starts_anew_beside_a_qemu_that_stands_still(lab: Lab) -> None:
    """What was asked of it meanwhile is done for the other VM; the stopped one is neither dead nor forgotten."""
    stopped, other = await lab.create(), await lab.create()
    await lab.until(other.name, lambda now: now.status.guest_agent)
    (pid,) = lab.qemus(stopped)["h1"]
    os.kill(pid, signal.SIGSTOP)
    try:
        async with lab.watch(other):
            await lab.kill("agent h1")
            job = await lab.client.call("vm.pause", other.name)
            await lab.restart("agent h1")
            await lab.done(job)
            assert (await lab.vm(other.name)).status.state is VmState.PAUSED
            # No event told the new agent: it looked.
            await lab.until(other.name, lambda now: now.status.guest_agent)
            told = await lab.until(stopped.name, lambda now: now.status.state is VmState.UNKNOWN)
            assert "its QEMU on h1 does not answer" in told.status.reason
    finally:
        os.kill(pid, signal.SIGCONT)
    async with lab.watch(stopped):
        await lab.until(stopped.name, lambda now: now.status.state is VmState.RUNNING)
        await lab.done(await lab.client.call("vm.pause", stopped.name))
    assert lab.qemus(stopped)["h1"] == [pid]


async def test_a_qemu_that_stands_still_beside_a_new_agent_is_stopped_by_force_and_started_again(lab: Lab) -> None:
    vm = await lab.create(restart="always")
    (pid,) = lab.qemus(vm)["h1"]
    os.kill(pid, signal.SIGSTOP)
    await lab.kill("agent h1")
    await lab.restart("agent h1")
    await lab.until(vm.name, lambda now: now.status.state is VmState.UNKNOWN)
    with pytest.raises(ConflictError, match=f"serai vm stop {vm.name} --force"):
        await lab.client.call("vm.stop", vm.name)
    await lab.done(await lab.client.call("vm.stop", vm.name, {"force": True}))
    assert lab.qemus(vm)["h1"] == []
    assert (await lab.vm(vm.name)).status.state is VmState.STOPPED
    async with lab.watch(vm):
        await lab.done(await lab.client.call("vm.start", vm.name))
    assert (await lab.vm(vm.name)).status.epoch == vm.status.epoch + 1
