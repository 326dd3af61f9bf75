"""Real processes, killed: after each fault exactly one copy runs, or none with a recorded reason."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.support.lab import Lab
from tests.support.looking import until

from serai.drivers.hypervisor.cgroup import hierarchies
from serai.schema.errors import SeraiError
from serai.schema.job import JobState
from serai.schema.vm import RestartPolicy, Vm, VmState

SLOW: dict[str, Any] = {"memory": 256 << 20, "cmdline": "serai.mem=300:150"}
"""A guest whose pre-copy never converges: time to kill things in it."""


def one_copy(lab: Lab, vm: Vm, host: str) -> None:
    counts = {name: len(pids) for name, pids in lab.qemus(vm).items()}
    assert counts == {name: int(name == host) for name in counts}


def groups(vm: Vm) -> list[Path]:
    """The control groups that a VM is to have on this machine; none where it has no hierarchies."""
    return [root / "serai" / vm.id for root in hierarchies().roots]


def check_apart(vm: Vm, pid: int, agent: int) -> None:
    """QEMU is in a process group and in control groups of its own: what ends the agent's does not end it."""
    assert os.getpgid(pid) == os.getsid(pid) == pid != os.getpgid(agent)
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    # In a hybrid of v1 and v2 the hierarchies of v1 are used; elsewhere there is one line.
    mine = [line for line in lines if line.endswith(f"/serai/{vm.id}")]
    assert len(mine) == len(groups(vm)), lines
    for group in groups(vm):
        assert (group / "cgroup.procs").read_text().split() == [str(pid)]


async def test_a_killed_agent_finds_its_vm_again(lab: Lab) -> None:
    vm = await lab.create()
    guest = lab.guest(vm)
    boot_id, (pid,) = await guest.boot_id(), lab.qemus(vm)["h1"]
    check_apart(vm, pid, lab.record("agent h1").pid)
    async with lab.watch(vm):
        await lab.kill("agent h1")
        assert await guest.boot_id() == boot_id
        await lab.restart("agent h1")
        await lab.online("h1")
        assert lab.qemus(vm)["h1"] == [pid]
        await lab.done(await lab.client.call("vm.pause", vm.name))
        await lab.done(await lab.client.call("vm.resume", vm.name))
    assert await guest.boot_id() == boot_id
    await lab.done(await lab.client.call("vm.delete", vm.name, query={"force": True}))
    assert not [group for group in groups(vm) if group.exists()]


async def test_destination_qemu_killed_in_precopy(lab: Lab) -> None:
    vm = await lab.create(**SLOW)
    async with lab.watch(vm):
        job = await lab.migrate(vm.name, "h2")
        await lab.in_precopy(vm, "h2")
        for pid in lab.qemus(vm)["h2"]:
            os.kill(pid, signal.SIGKILL)
        ended = await lab.client.wait_job(job.id)
        assert ended.state is JobState.FAILED
        assert ended.error is not None
    after = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
    assert after.status.host == "h1"
    one_copy(lab, vm, "h1")
    await lab.guest(vm).uptime()


@pytest.mark.parametrize("role", ["agent h1", "agent h2"])
async def test_an_agent_killed_in_mid_migration(lab: Lab, role: str) -> None:
    vm = await lab.create(**SLOW)
    async with lab.watch(vm):
        job = await lab.migrate(vm.name, "h2")
        await lab.in_precopy(vm, "h2")
        await lab.kill(role)
        await lab.restart(role)
        await lab.online("h1", "h2")
        if role == "agent h2":
            await lab.client.call("job.cancel", job.id)
        ended = await lab.client.wait_job(job.id)
        assert ended.state in (JobState.FAILED, JobState.CANCELLED)
    after = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
    assert after.status.host == "h1"
    one_copy(lab, vm, "h1")


async def test_the_controller_killed_in_mid_migration(lab: Lab) -> None:
    vm = await lab.create(**SLOW)
    async with lab.watch(vm):
        job = await lab.migrate(vm.name, "h2")
        await lab.in_precopy(vm, "h2")
        await lab.kill("controller ctl")
        await lab.restart("controller ctl")
        await lab.online("h1", "h2", "h3")
        ended = await lab.client.wait_job(job.id)
        assert ended.state.ended
    after = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
    assert after.status.host is not None
    one_copy(lab, vm, after.status.host)


async def test_killed_qemu_is_a_crash_with_its_reason_and_restarts_by_policy(lab: Lab) -> None:
    stays = await lab.create()
    comes_back = await lab.create(restart=RestartPolicy.ON_FAILURE)
    async with lab.watch(stays), lab.watch(comes_back):
        for vm in (stays, comes_back):
            os.kill(lab.qemus(vm)["h1"][0], signal.SIGKILL)
        crashed = await lab.until(stays.name, lambda now: now.status.state is VmState.CRASHED)
        assert "signal 9" in crashed.status.reason
        again = await lab.until(
            comes_back.name, lambda now: now.status.state is VmState.RUNNING and now.status.restarts == 1
        )
    assert "signal 9" in again.status.reason
    await lab.guest(comes_back).up()


async def test_a_guests_own_poweroff_and_panic(lab: Lab) -> None:
    off = await lab.create()
    panics = await lab.create()
    async with lab.watch(off), lab.watch(panics):
        await lab.guest(off).power_off()
        await lab.guest(panics).panic()
        stopped = await lab.until(off.name, lambda now: now.status.state is VmState.STOPPED)
        crashed = await lab.until(panics.name, lambda now: now.status.state is VmState.CRASHED)
    assert "itself" in stopped.status.reason
    assert "panicked" in crashed.status.reason


async def test_shut_down_start_reset_pause(lab: Lab) -> None:
    vm = await lab.create()
    async with lab.watch(vm):
        await shut_down_and_start(lab, vm)


async def shut_down_and_start(lab: Lab, vm: Vm) -> None:
    guest = lab.guest(vm)
    first = await guest.boot_id()
    await lab.done(await lab.client.call("vm.reset", vm.name))
    await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
    for _ in range(100):
        try:
            if await guest.boot_id() != first:
                break
        except SeraiError:
            pass
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the reset did not boot it anew")
    job = await lab.done(await lab.client.call("vm.stop", vm.name))
    assert job.result is not None
    assert job.result["state"] == VmState.STOPPED
    assert lab.qemus(vm)["h1"] == []
    await lab.done(await lab.client.call("vm.start", vm.name))
    await guest.up()


async def test_the_bus_away_for_30_seconds(lab: Lab) -> None:
    vm = await lab.create()
    guest = lab.guest(vm)
    boot_id, pid = await guest.boot_id(), lab.qemus(vm)["h1"]
    stops = await lab.create()
    async with lab.watch(vm), lab.watch(stops):
        await lab.kill("nats-server ctl")
        # What happens while nobody can be told of it is told afterwards.
        await lab.guest(stops).power_off()
        await until(lambda: not lab.qemus(stops)["h1"], "the guest to power itself off")
        await asyncio.sleep(30)
        assert await guest.boot_id() == boot_id
        shown = await lab.vm(vm.name)
        assert shown.status.state is VmState.RUNNING, "silence on the bus never means that a VM is dead"
        await lab.restart_bus()
        await lab.online("h1", "h2", "h3")
        await lab.until(stops.name, lambda now: now.status.state is VmState.STOPPED)
        assert lab.qemus(vm)["h1"] == pid
        await lab.done(await lab.migrate(vm.name, "h2"))
    assert await guest.boot_id() == boot_id
