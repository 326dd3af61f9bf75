"""How a VM starts, fails and ends, and is started again where its policy says so."""

from __future__ import annotations

import pytest
from tests.unit.host.ground import VM, Ground, Host

from serai.drivers.hypervisor.base import RunState
from serai.drivers.hypervisor.fake import FakeMachine
from serai.schema.commands.vm import VM_RESUME, SignalVm
from serai.schema.errors import SeraiError
from serai.schema.vm import RestartPolicy, VmState


@pytest.mark.parametrize(
    ("end", "state", "words"),
    [
        ("guest-shutdown", VmState.STOPPED, "powered itself off"),
        ("guest-panic", VmState.CRASHED, "panicked"),
        ("kill", VmState.CRASHED, "signal 9"),
    ],
)
@pytest.mark.parametrize("policy", list(RestartPolicy))
async def test_ends(ground: Ground, h1: Host, end: str, state: VmState, words: str, policy: RestartPolicy) -> None:
    await ground.run_vm("h1", restart=policy)
    process = h1.process()
    if end == "kill":
        process.end(by_signal=9)
    else:
        process.guest_ends(end)
    restarts = policy is RestartPolicy.ALWAYS or (policy is RestartPolicy.ON_FAILURE and state is VmState.CRASHED)
    if restarts:
        await ground.until(lambda: h1.running)
        assert h1.process() is not process
        assert h1.state() is VmState.RUNNING
    else:
        await ground.until(lambda: h1.state() is state)
    assert words in h1.reason()


async def test_an_io_error_pauses_with_its_reason_and_the_vm_goes_on_as_it_is_told(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    h1.process().io_error()
    assert h1.state() is VmState.PAUSED
    assert h1.reason().startswith("paused: I/O error on web1-0 (write): Input/output error")
    assert "serai vm resume web1" in h1.reason()
    await ground.until(lambda: ground.reports[-1].state is VmState.PAUSED)
    assert ground.reports[-1].reason == h1.reason()
    await h1.restart()
    assert (h1.state(), h1.process().state) == (VmState.PAUSED, RunState.IO_ERROR), "nobody mended it"
    resumed = await ground.ask("h1", VM_RESUME, SignalVm(vm=VM))
    assert (resumed.state, h1.process().state) == (VmState.RUNNING, RunState.RUNNING)


async def test_an_io_error_that_nobody_saw_is_found_by_the_next_agent(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    await h1.kill()
    h1.process().io_error()
    await h1.start()
    assert (h1.state(), h1.process().state) == (VmState.PAUSED, RunState.IO_ERROR)
    assert "io-error" in h1.reason()


@pytest.mark.parametrize("asked", ["start", "resume"])
async def test_a_disk_that_fails_at_once_is_not_overlooked(
    ground: Ground, h1: Host, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The event comes before the VM is said to run."""
    cont = FakeMachine.cont

    async def fails(self: FakeMachine) -> None:
        await cont(self)
        self.process.io_error()

    if asked == "start":
        monkeypatch.setattr(FakeMachine, "cont", fails)
        report = await ground.run_vm("h1")
    else:
        await ground.run_vm("h1")
        h1.process().io_error()
        monkeypatch.setattr(FakeMachine, "cont", fails)
        report = await ground.ask("h1", VM_RESUME, SignalVm(vm=VM))
    assert (report.state, h1.state()) == (VmState.PAUSED, VmState.PAUSED)
    assert "I/O error on web1-0" in report.reason
    monkeypatch.setattr(FakeMachine, "cont", cont)
    assert (await ground.ask("h1", VM_RESUME, SignalVm(vm=VM))).state is VmState.RUNNING


async def test_an_error_that_the_guest_is_told_of_is_its_own_matter(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    h1.process().emit("BLOCK_IO_ERROR", device="", action="report", operation="read")
    assert h1.state() is VmState.RUNNING


async def test_a_start_that_fails_says_why_and_can_be_tried_again(ground: Ground, h1: Host) -> None:
    h1.hypervisor.fail_start = "no such drive"
    with pytest.raises(SeraiError, match="no such drive"):
        await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    assert (h1.state(), h1.processes()) == (VmState.STOPPED, [])
    assert "no such drive" in h1.reason()
    h1.hypervisor.fail_start = None
    assert (await ground.run_vm("h1")).state is VmState.RUNNING


async def test_a_restart_that_fails_is_tried_again(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ON_FAILURE)
    h1.hypervisor.fail_start = "the target does not answer"
    h1.process().end(by_signal=9)
    await ground.until(lambda: "target does not answer" in h1.reason())
    assert h1.state() is VmState.CRASHED
    h1.hypervisor.fail_start = None
    await ground.until(lambda: h1.running)


async def test_what_ended_unwatched_follows_the_policy(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ON_FAILURE)
    await h1.kill()
    h1.process().end(by_signal=9)
    await h1.start()
    await ground.until(lambda: h1.running)
    assert "while no agent watched" in h1.reason()


async def test_a_restart_that_was_due_is_not_forgotten(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ON_FAILURE)
    h1.process().end(by_signal=9)
    await ground.until(lambda: h1.running, ticking=False)
    h1.process().end(by_signal=9)  # the second restart waits
    await ground.until(lambda: h1.state() is VmState.CRASHED, ticking=False)
    await h1.restart()
    await ground.until(lambda: h1.running)
