"""One VM: what may be asked of it."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.host.ground import VM, Ground, Host, make_launch

from serai.drivers.hypervisor.base import RunState
from serai.drivers.hypervisor.fake import FakeMachine
from serai.schema.commands.vm import (
    VM_CONFIGURE,
    VM_PAUSE,
    VM_RELEASE,
    VM_RESET,
    VM_RESUME,
    VM_STOP,
    ConfigureVm,
    ReleaseVm,
    SignalVm,
    StopVm,
)
from serai.schema.errors import ConflictError, StaleError
from serai.schema.lease import Claim
from serai.schema.vm import RestartPolicy, VmState


async def test_a_life(ground: Ground, h1: Host) -> None:
    report = await ground.run_vm("h1")
    assert (report.state, report.epoch, report.pid) == (VmState.RUNNING, 1, h1.process().pid)
    assert h1.store.claim(VM, 1) is Claim.HELD
    paused = await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM))
    assert (paused.state, h1.process().state) == (VmState.PAUSED, RunState.PAUSED)
    resumed = await ground.ask("h1", VM_RESUME, SignalVm(vm=VM))
    assert (resumed.state, h1.process().state) == (VmState.RUNNING, RunState.RUNNING)
    await ground.ask("h1", VM_RESET, SignalVm(vm=VM))
    stopped = await ground.ask("h1", VM_STOP, StopVm(vm=VM))
    assert (stopped.state, stopped.reason, stopped.pid) == (VmState.STOPPED, "shut down as asked", None)
    with pytest.raises(ConflictError):
        await ground.ask("h1", VM_RESUME, SignalVm(vm=VM))
    again = await ground.run_vm("h1")
    assert again.state is VmState.RUNNING
    await ground.turn()
    sequences = [found.sequence for found in ground.reports]
    assert sequences == sorted(set(sequences))


async def test_a_stop_by_force_does_not_wait_for_one_that_asks_the_guest(ground: Ground, h1: Host) -> None:
    """Both are answered alike, and the next one asks its guest again."""
    for _ in range(2):
        await ground.run_vm("h1")
        process = h1.process()
        process.ignores_powerdown = True
        gentle = asyncio.create_task(ground.ask("h1", VM_STOP, StopVm(vm=VM, timeout=3600)))
        await ground.until(lambda: h1.state() is VmState.STOPPING)
        assert process.alive
        forced = await ground.ask("h1", VM_STOP, StopVm(vm=VM, force=True))
        assert forced.state is VmState.STOPPED
        assert (await gentle).state is VmState.STOPPED


async def test_a_release_does_not_wait_for_a_guest_that_shuts_down(ground: Ground, h1: Host) -> None:
    """The journal says at once what is over. A release of an older epoch hurries no guest."""
    await ground.run_vm("h1", epoch=2)
    h1.process().ignores_powerdown = True
    gentle = asyncio.create_task(ground.ask("h1", VM_STOP, StopVm(vm=VM, timeout=3600)))
    await ground.until(lambda: h1.state() is VmState.STOPPING)
    older = asyncio.create_task(ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1)))
    await ground.turn()
    assert (h1.processes() != [], older.done()) == (True, False)
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=2))
    assert (h1.processes(), h1.store.claim(VM, 2)) == ([], Claim.RELEASED)
    await asyncio.gather(gentle, older)


async def test_what_is_over_is_in_the_journal_before_anything_is_waited_for(ground: Ground, h1: Host) -> None:
    answers = h1.hold_start()
    starting = asyncio.create_task(ground.run_vm("h1"))
    await ground.until(h1.processes, ticking=False)
    releasing = asyncio.create_task(ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1)))
    await ground.turn()
    assert h1.store.claim(VM, 1) is Claim.RELEASED
    answers.set()
    await releasing
    with pytest.raises(StaleError):
        await starting
    assert ground.most == 0


async def test_a_vm_that_is_resumed_shows_whether_it_goes_on(
    ground: Ground, h1: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is tried again, and the answer comes after `cont` has returned."""
    cont = FakeMachine.cont

    async def fails_later(self: FakeMachine) -> None:
        await cont(self)
        asyncio.get_running_loop().call_soon(self.process.io_error)

    await ground.run_vm("h1")
    h1.process().io_error()
    monkeypatch.setattr(FakeMachine, "cont", fails_later)
    report = await ground.ask("h1", VM_RESUME, SignalVm(vm=VM))
    assert (report.state, h1.state()) == (VmState.PAUSED, VmState.PAUSED)
    assert "I/O error on web1-0" in report.reason


async def test_what_is_pending_applies_at_the_next_start(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ON_FAILURE)
    wanted = make_launch(generation=2, cpus=2, memory=128 << 20)
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.ON_FAILURE))
    assert answer.applied == ["cpus"]
    assert len(answer.pending) == 1
    record = h1.store.vm(VM)
    assert record is not None
    assert (record.launch.cpus, record.launch.memory, record.launch.generation) == (2, 64 << 20, 1)
    await h1.restart()
    process = h1.process()
    process.end(by_signal=9)
    await ground.until(lambda: h1.running and h1.process() is not process)
    assert h1.process().launch == wanted
