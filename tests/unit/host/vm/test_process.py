"""A VM's QEMU: asked to end, and ended."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.host.ground import VM, Ground, Host

from serai.schema.commands.vm import VM_STOP, StopVm
from serai.schema.vm import RestartPolicy, VmState


async def test_a_guest_that_ignores_the_button_is_ended_by_force(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    h1.process().ignores_powerdown = True
    stopped = await ground.ask("h1", VM_STOP, StopVm(vm=VM, timeout=0.05))
    assert (stopped.state, stopped.reason) == (VmState.STOPPED, "stopped by force")
    await ground.until(lambda: True)
    assert not h1.processes()


async def test_a_guest_that_still_boots_is_asked_again(
    ground: Ground, h1: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.host.vm.process.PRESS_AGAIN", 0.01)
    await ground.run_vm("h1")
    process = h1.process()
    process.ignores_powerdown = True
    asyncio.get_running_loop().call_later(0.05, setattr, process, "ignores_powerdown", False)
    stopped = await ground.ask("h1", VM_STOP, StopVm(vm=VM, timeout=30.0))
    assert (stopped.state, stopped.reason) == (VmState.STOPPED, "shut down as asked")
