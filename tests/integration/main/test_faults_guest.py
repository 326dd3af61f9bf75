"""Guests and disks that do not do as they should: one deaf to ACPI, one that powers itself off, a pool that is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from bench.workload import Guest
from serai.lab.state import LabFolder
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.schema.ids import HostName, PoolId
from serai.schema.vm import DiskSpec, RestartPolicy, VmState, VmStop
from serai.schema.volume import PoolCreate, PoolSpec

DEAF = "serai.mem=4:2 module_blacklist=button"
"""Without its driver for the button the guest's kernel does not hear it."""


async def test_a_guest_deaf_to_acpi_is_ended_by_force_and_stays_down(lab: Lab) -> None:
    vm = await lab.create(restart=RestartPolicy.ALWAYS, cmdline=DEAF)
    job = await lab.done(await lab.client.call("vm.stop", vm.name, body=VmStop(timeout=1.0)))
    assert job.result == {"state": VmState.STOPPED, "reason": "stopped by force"}
    assert lab.qemus(vm)["h1"] == []
    after = await lab.vm(vm.name)
    assert (after.status.state, after.status.restarts) == (VmState.STOPPED, 0)


async def test_a_guest_that_hears_is_not_ended_by_force(lab: Lab) -> None:
    vm = await lab.create(restart=RestartPolicy.ALWAYS)
    job = await lab.done(await lab.client.call("vm.stop", vm.name, body=VmStop(timeout=PATIENCE)))
    assert job.result == {"state": VmState.STOPPED, "reason": "shut down as asked"}


async def test_a_guests_own_poweroff_starts_it_again_where_the_policy_is_always(lab: Lab) -> None:
    vm = await lab.create(restart=RestartPolicy.ALWAYS)
    guest = lab.guest(vm)
    boot_id, (pid,) = await guest.boot_id(), lab.qemus(vm)["h1"]
    await guest.power_off()
    again = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING and now.status.restarts == 1)
    assert "powered itself off" in again.status.reason
    await guest.up()
    assert await guest.boot_id() != boot_id
    assert lab.qemus(vm)["h1"] not in ([], [pid])


# --- a pool without room ---


@dataclass
class SmallPool:
    """A pool of 8 MiB on h3, and how it is filled."""

    name: str
    inside: list[str]
    place: Path

    async def fill(self) -> None:
        await run([*self.inside, "dd", "if=/dev/zero", f"of={self.place}/filler", "bs=4096"], check=False)

    async def make_room(self) -> None:
        await run([*self.inside, "rm", f"{self.place}/filler"])


@asynccontextmanager
async def small_pool(lab: Lab) -> AsyncIterator[SmallPool]:
    name = f"p{new_id()[:6]}"
    place = Path("/var/lib/serai") / name
    inside = namespace.enter_argv(None, LabFolder.of(lab.name).pin("h3"))
    await run([*inside, "mkdir", str(place)])
    await run([*inside, "mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "small", str(place)])
    try:
        body = PoolCreate(name=name, spec=PoolSpec(host=HostName("h3"), path=str(place)))
        await lab.done(await lab.client.call("pool.create", body=body))
        yield SmallPool(name, inside, place)
        await lab.clean()
        await lab.done(await lab.client.call("pool.delete", name))
    finally:
        # A test that failed leaves a volume that is still exported: lazily then.
        await run([*inside, "umount", "--lazy", str(place)])
        await run([*inside, "rmdir", str(place)])


async def writes(guest: Guest) -> None:
    """Its disk writer gets on, and everything that it reads back is right."""
    before = (await guest.disk()).written
    async with asyncio.timeout(PATIENCE):
        while (count := await guest.disk()).written == before:
            await asyncio.sleep(0.1)
    assert count.errors == 0


async def test_a_full_pool_pauses_its_vm_which_goes_on_once_there_is_room(lab: Lab) -> None:
    async with small_pool(lab) as pool:
        vm = await lab.create(disks=[DiskSpec(pool=PoolId(pool.name), size=6 << 20)])
        guest = lab.guest(vm)
        boot_id, qemus = await guest.boot_id(), lab.qemus(vm)
        await pool.fill()
        await guest.write_disk()
        paused = await lab.until(vm.name, lambda now: now.status.state is VmState.PAUSED)
        assert f"paused: I/O error on {vm.name}-disk0 (write)" in paused.status.reason
        assert f"serai vm resume {vm.name}" in paused.status.reason
        # As long as there is no room it does not run, whatever is asked.
        async with asyncio.timeout(PATIENCE):
            while (await lab.client.call("pool.show", pool.name)).status.free >= 1 << 20:
                await asyncio.sleep(0.1)
        job = await lab.client.wait_job((await lab.client.call("vm.resume", vm.name)).id)
        assert job.error is not None
        assert job.error.message == (f"VM {vm.name} stopped again at once: no room is left in pool {pool.name} on h3")
        await lab.until(vm.name, lambda now: now.status.state is VmState.PAUSED)
        await pool.make_room()
        await lab.done(await lab.client.call("vm.resume", vm.name))
        await writes(guest)
        count = await guest.stop_disk()
        assert (count.errors, count.on) == (0, False)
        assert (await lab.vm(vm.name)).status.state is VmState.RUNNING
        assert (await guest.boot_id(), lab.qemus(vm)) == (boot_id, qemus)
