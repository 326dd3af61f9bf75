"""A host that dies with its QEMUs: what goes on without it, and what an operator's word ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.lab import Lab
from tests.support.looking import PATIENCE, until

from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.job import JobState
from serai.schema.vm import Vm, VmStart, VmState, VmStop

from .cli import Serai, refused
from .stand import MUCH, held

SLOW: dict[str, Any] = {"memory": 256 << 20, "cmdline": "serai.mem=300:150"}
"""A guest whose pre-copy never converges."""


async def die(lab: Lab, host: str, vm: Vm) -> None:
    """Its agent and the VM's QEMU there, at once."""
    await lab.kill(f"agent {host}")
    for pid in lab.qemus(vm)[host]:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not lab.qemus(vm)[host], "the end of QEMU")


async def is_in(lab: Lab, host: str, state: HostState) -> None:
    deadline = time.monotonic() + PATIENCE
    while (await lab.client.call("host.show", host)).status.state is not state:
        assert time.monotonic() < deadline, f"{host} is not {state}"
        await asyncio.sleep(0.1)


@asynccontextmanager
async def brought_back(lab: Lab, host: str) -> AsyncIterator[None]:
    """Whatever happens to the host's agent, it runs in the end."""
    try:
        yield
    finally:
        if not lab.record(f"agent {host}").alive:
            await lab.restart(f"agent {host}")
        await lab.online(host)


async def test_a_destination_that_dies_in_precopy_does_not_keep_the_job(lab: Lab) -> None:
    vm = await lab.create(**SLOW)
    boot_id = await lab.guest(vm).boot_id()
    async with brought_back(lab, "h2"), lab.watch(vm):
        job = await lab.migrate(vm.name, "h2")
        await lab.in_precopy(vm, "h2")
        await die(lab, "h2", vm)
        async with asyncio.timeout(PATIENCE):
            ended = await lab.client.wait_job(job.id)
        assert ended.state is JobState.FAILED
        after = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
        assert (after.status.host, await lab.guest(vm).boot_id()) == ("h1", boot_id)
        await lab.done(await lab.client.call("vm.stop", vm.name, VmStop(force=True)))


async def test_a_source_that_dies_after_the_commit_does_not_keep_the_job(lab: Lab) -> None:
    async with held(lab, MUCH) as stand, brought_back(lab, "h1"):
        await die(lab, "h1", stand.vm)
        stand.thaw(stand.destination)
        await until(lambda: stand.claim() == "committed", "the destination's commit")
        ended = await stand.ended()
        assert ended.state is JobState.DONE, ended.error
        # Nothing waits for the host that is down.
        await lab.done(await lab.client.call("vm.stop", stand.vm.name, VmStop(force=True)))
    await lab.done(await lab.client.call("vm.start", stand.vm.name))
    await lab.guest(stand.vm).up()
    async with asyncio.timeout(PATIENCE):
        while (await lab.client.call("host.show", "h1")).status.leftovers:
            await asyncio.sleep(0.1)
    assert sum(len(pids) for pids in lab.qemus(stand.vm).values()) == 1


async def test_a_second_agent_on_a_hosts_state_is_refused(lab: Lab) -> None:
    first = lab.record("agent h1").pid
    argv = Path(f"/proc/{first}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    inside = ("nsenter", "--target", str(first), "--mount", "--net")
    second = await asyncio.create_subprocess_exec(*inside, *argv, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(PATIENCE):
        _, said = await second.communicate()
    assert second.returncode not in (0, None)
    assert f"another host agent works on this state: process {first}" in said.decode()


async def test_vms_of_a_fenced_host_start_elsewhere_and_it_gives_them_up(lab: Lab) -> None:
    serai = Serai(lab.name)
    vm = await lab.create(host="h3")
    async with brought_back(lab, "h3"):
        refused(await serai("host", "fence", "h3", "--is-off"), "host", "h3", "Switch the machine off")
        await die(lab, "h3", vm)
        await is_in(lab, "h3", HostState.OFFLINE)
        refused(await serai("host", "fence", "h3"), "is_off", "False", "serai host fence h3 --is-off")
        await serai.well("host", "fence", "h3", "--is-off", "--reason", "a test")
        await is_in(lab, "h3", HostState.FENCED)
        status = (await lab.vm(vm.name)).status
        assert (status.state, status.reason) == (VmState.CRASHED, "its host h3 was fenced")
        await lab.done(await lab.client.call("vm.start", vm.name, VmStart(host=HostName("h2"))))
        await lab.guest(vm).up()
        await lab.restart("agent h3")
        # It gives up what it held before it gets anything to do.
        await lab.online("h3")
        assert {host: len(pids) for host, pids in lab.qemus(vm).items()} == {"h1": 0, "h2": 1, "h3": 0}
        await lab.done(await lab.migrate(vm.name, "h3"))
