"""A backup of the database takes its place: no VM gets a second copy, and what hosts run is known again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lab.state import LabFolder
from serai.schema.job import Event
from serai.schema.vm import VmState

from .cli import Serai

DATABASE = "serai.db"


@asynccontextmanager
async def controller_down(lab: Lab) -> AsyncIterator[None]:
    """The controller is killed, and started again at the end."""
    await lab.kill("controller ctl")
    try:
        yield
    finally:
        await lab.restart("controller ctl")


async def back_up(lab: Lab) -> None:
    state = LabFolder.of(lab.name).controller / "state"
    async with controller_down(lab):
        for file in state.glob(f"{DATABASE}*"):
            shutil.copyfile(file, state / f"backup-{file.name}")
    await lab.online("h1", "h2", "h3")


async def restore(lab: Lab) -> None:
    """The controller is down."""
    state = LabFolder.of(lab.name).controller / "state"
    for file in state.glob(f"{DATABASE}*"):
        file.unlink()
    for file in state.glob(f"backup-{DATABASE}*"):
        file.rename(state / file.name.removeprefix("backup-"))


async def alarms(lab: Lab, kind: str) -> list[Event]:
    found: list[Event] = (await lab.client.call("event.list", None, None, {"kind": kind})).items
    return found


async def test_a_database_from_before_a_move_starts_no_second_copy(lab: Lab) -> None:
    vm = await lab.create()
    boot_id = await lab.guest(vm).boot_id()
    await back_up(lab)
    await lab.done(await lab.migrate(vm.name, "h2"))
    async with lab.watch(vm):
        await lab.kill("agent h2")
        try:
            async with controller_down(lab):
                await restore(lab)
            await lab.online("h1", "h3")
            before = await lab.vm(vm.name)
            assert (before.status.host, before.status.epoch) == ("h1", 1)
            # Who asks for it now gets no second copy: the host that may have it has not reported.
            serai = Serai(lab.name)
            await serai("vm", "start", vm.name, "--no-wait")
            assert {host: len(pids) for host, pids in lab.qemus(vm).items()} == {"h1": 0, "h2": 1, "h3": 0}
        finally:
            await lab.restart("agent h2")
        after = await lab.until(vm.name, lambda now: (now.status.host, now.status.state) == ("h2", VmState.RUNNING))
        assert after.status.epoch == 2
        assert await lab.guest(vm).boot_id() == boot_id
    assert [one.data["host"] for one in await alarms(lab, "lease.adopted") if one.resource_id == vm.id] == ["h2"]
    assert await alarms(lab, "store.restored")
    assert await alarms(lab, "store.complete")
    await lab.done(await lab.migrate(vm.name, "h3"))


async def test_a_vm_newer_than_the_backup_is_taken_back_in(lab: Lab) -> None:
    await back_up(lab)
    vm = await lab.create()
    boot_id = await lab.guest(vm).boot_id()
    async with controller_down(lab):
        await restore(lab)
    await lab.online("h1", "h2", "h3")
    async with asyncio.timeout(PATIENCE):
        while not await alarms(lab, "vm.adopted"):
            await asyncio.sleep(0.1)
    after = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
    assert (after.id, after.spec, after.status.host) == (vm.id, vm.spec, "h1")
    assert await lab.guest(vm).boot_id() == boot_id
    await lab.done(await lab.migrate(vm.name, "h2"))
    assert await lab.guest(vm).boot_id() == boot_id
