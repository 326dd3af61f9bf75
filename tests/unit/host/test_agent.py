"""One agent on the bus: commands once each, a VM's life and ends, and what a new agent makes of it all."""

from __future__ import annotations

import asyncio

import pytest

from serai.drivers.hypervisor.base import Placing, RunState
from serai.drivers.hypervisor.fake import FakeMachine
from serai.drivers.image.base import write_manifest
from serai.drivers.image.store import ImageStore
from serai.host.storage import HostStorage
from serai.lib.ids import new_id
from serai.schema.attach import KernelBoot, Launch, Seed, VnicAttachment
from serai.schema.commands.vm import (
    VM_CONFIGURE,
    VM_PAUSE,
    VM_RELEASE,
    VM_RESET,
    VM_RESUME,
    VM_START,
    VM_STOP,
    ConfigureVm,
    ReleaseVm,
    SignalVm,
    StartVm,
    StopVm,
)
from serai.schema.errors import ConflictError, NotFoundError, SeraiError, StaleError
from serai.schema.image import ImageKind
from serai.schema.lease import Claim
from serai.schema.vm import RestartPolicy, VmState
from serai.schema.volume import PoolStatus

from .conftest import FACTS, VM, Ground, Host, make_launch


def start(**changes: object) -> StartVm:
    values = {"launch": make_launch(), "epoch": 1, "restart": RestartPolicy.NEVER, **changes}
    return StartVm.model_validate(values)


# --- commands ---


async def test_a_repeated_id_is_answered_alike_and_carried_out_once(ground: Ground, h1: Host) -> None:
    command = new_id()
    first = await ground.send("h1", VM_START, start(), id=command)
    pid = h1.process().pid
    await ground.ask("h1", VM_STOP, StopVm(vm=VM, force=True))
    assert await ground.send("h1", VM_START, start(), id=command) == first
    await h1.restart()
    assert await ground.send("h1", VM_START, start(), id=command) == first
    assert not h1.processes()
    assert first.result is not None
    assert first.result["pid"] == pid


async def test_an_older_generation_is_refused(ground: Ground, h1: Host) -> None:
    await ground.ask("h1", VM_START, start(), generation=5)
    with pytest.raises(StaleError):
        await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM), generation=4)
    await h1.restart()
    with pytest.raises(StaleError):
        await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM), generation=4)
    await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM), generation=5)


async def test_an_unknown_command_and_a_bad_body_are_named(ground: Ground, h1: Host) -> None:
    reply = await ground.send("h1", "vm.teleport", {})
    assert reply.error is not None
    assert (reply.error.code, reply.error.field, reply.error.value) == ("invalid", "command", "vm.teleport")
    reply = await ground.send("h1", VM_STOP, {"vm": VM, "timeout": "soon"})
    assert reply.error is not None
    assert (reply.error.code, reply.error.field) == ("invalid", "timeout")
    reply = await ground.send("h1", VM_STOP, {"vm": VM})
    assert reply.error is not None
    assert (reply.error.code, reply.error.value) == ("not_found", VM)


# --- the VM's life ---


async def test_a_life(ground: Ground, h1: Host) -> None:
    report = await ground.run_vm("h1")
    assert (report.state, report.epoch, report.pid) == (VmState.RUNNING, 1, h1.process().pid)
    assert h1.records.claim(VM, 1) is Claim.HELD
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


async def test_a_guest_that_ignores_the_button_is_ended_by_force(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    h1.process().ignores_powerdown = True
    stopped = await ground.ask("h1", VM_STOP, StopVm(vm=VM, timeout=0.05))
    assert (stopped.state, stopped.reason) == (VmState.STOPPED, "stopped by force")
    await ground.until(lambda: True)
    assert not h1.processes()


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


async def test_a_guest_that_still_boots_is_asked_again(
    ground: Ground, h1: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.host.vm.PRESS_AGAIN", 0.01)
    await ground.run_vm("h1")
    process = h1.process()
    process.ignores_powerdown = True
    asyncio.get_running_loop().call_later(0.05, setattr, process, "ignores_powerdown", False)
    stopped = await ground.ask("h1", VM_STOP, StopVm(vm=VM, timeout=30.0))
    assert (stopped.state, stopped.reason) == (VmState.STOPPED, "shut down as asked")


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


async def test_a_host_without_the_bridge_names_itself_and_reports_which_it_has(ground: Ground, h1: Host) -> None:
    await ground.until(lambda: any(report.bridges == ["br-lan"] for report in ground.host_reports))
    h1.network.bridges.clear()
    with pytest.raises(NotFoundError, match="host h1 has no bridge br-lan") as caught:
        await ground.run_vm("h1")
    assert (caught.value.info.field, caught.value.info.value) == ("spec.bridge", "br-lan")
    assert "--host h1 --bridge br-lan" in (caught.value.info.remedy or "")
    assert (h1.state(), "could not start: host h1 has no bridge br-lan" in h1.reason()) == (VmState.STOPPED, True)
    await ground.until(lambda: ground.host_reports[-1].bridges == [])


async def test_a_stale_epoch_starts_nothing(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", epoch=3)
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=3))
    for epoch in (1, 3):
        with pytest.raises(StaleError):
            await ground.run_vm("h1", epoch=epoch)
    assert h1.records.vm(VM) is None
    assert (await ground.run_vm("h1", epoch=4)).epoch == 4


async def test_released_nothing_stays(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS)
    for folder in (h1.paths.vm_run(VM), h1.paths.vm_state(VM)):
        folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1, reason="deleted"))
    assert not h1.processes()
    assert h1.records.claim(VM, 1) is Claim.RELEASED
    assert not h1.paths.vm_run(VM).exists()
    assert not h1.paths.vm_state(VM).exists()


async def test_what_runs_without_a_record_is_told_and_ends_with_its_release(
    ground: Ground, h1: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Its journal was moved away; the QEMU goes on, and may not answer."""
    await ground.run_vm("h1")
    process = h1.process()
    process.silent = True
    await h1.kill()
    h1.paths.journal.unlink()
    with caplog.at_level("ERROR", "serai"):
        await h1.start()
    assert f"VM {VM} runs here as process {process.pid}" in caplog.text
    assert process.alive
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1, reason="deleted"))
    assert not h1.processes()
    assert not h1.paths.vm_run(VM).exists()
    assert h1.records.claim(VM, 1) is Claim.RELEASED


async def test_a_late_release_ends_nobody_elses_qemu(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", epoch=2)
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1))
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm="f" * 12, epoch=9))
    assert h1.process().alive


# --- a new agent ---


async def test_a_running_and_a_paused_vm_are_adopted(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    process = h1.process()
    await h1.restart()
    assert (h1.process(), h1.state()) == (process, VmState.RUNNING)
    await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM))
    await h1.restart()
    assert (h1.process().state, h1.state()) == (RunState.PAUSED, VmState.PAUSED)


async def test_a_silent_qemu_is_asked_until_it_answers(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    process = h1.process()
    process.silent = True
    await h1.restart()
    reply = await ground.send("h1", VM_START, start())
    assert reply.error is not None
    assert reply.error.code == "unavailable"
    process.silent = False
    await ground.until(lambda: VM in h1.vms.agents)
    assert (await ground.ask("h1", VM_PAUSE, SignalVm(vm=VM))).state is VmState.PAUSED
    assert h1.process() is process


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


async def test_a_reboot_starts_vms_in_their_order(ground: Ground, h1: Host) -> None:
    ids = [f"{number:012x}" for number in range(1, 5)]
    for vm, order in zip(ids, (3, 1, 2, 0), strict=True):
        launch = make_launch(vm=vm, name=f"vm{order}")
        await ground.run_vm("h1", launch=launch, autostart_order=order, autostart=order != 0)
    started: list[str] = []
    begin = h1.hypervisor.start

    async def note(launch: Launch, placing: Placing, *, incoming: bool, paused: bool) -> FakeMachine:
        started.append(launch.name)
        return await begin(launch, placing, incoming=incoming, paused=paused)

    h1.hypervisor.start = note  # type: ignore[method-assign] # to see the order
    await h1.power_cycle()
    assert started == ["vm1", "vm2", "vm3"]
    assert h1.state(ids[3]) is VmState.CRASHED
    assert h1.reason(ids[3]) == "its host was rebooted"


async def test_reports_come_and_name_leases(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    await ground.until(lambda: any(report.vms for report in ground.host_reports))
    newest = ground.host_reports[-1]
    assert [(row.vm, row.epoch, row.claim) for row in newest.leases] == [(VM, 1, Claim.HELD)]


async def test_facts_that_changed_are_told_with_a_new_hello(ground: Ground, h1: Host) -> None:
    await ground.until(lambda: len(ground.hellos) == 1)
    h1.agent.renew(FACTS)
    reports = len(ground.host_reports)
    await ground.until(lambda: len(ground.host_reports) > reports + 1)
    assert len(ground.hellos) == 1
    h1.agent.renew(FACTS.model_copy(update={"accel": "kvm"}))
    await ground.until(lambda: len(ground.hellos) == 2)
    assert [hello.facts.accel for hello in ground.hellos] == ["tcg", "kvm"]


async def test_a_report_that_fails_does_not_end_the_reports(
    ground: Ground, h1: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    async def broken(self: HostStorage) -> dict[str, PoolStatus]:
        tried.append(self)
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(HostStorage, "statuses", broken)
        await ground.until(lambda: len(tried) > 1)
    before = len(ground.host_reports)
    await ground.until(lambda: len(ground.host_reports) > before)


async def test_what_is_pending_applies_at_the_next_start(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1", restart=RestartPolicy.ON_FAILURE)
    wanted = make_launch(generation=2, cpus=2, memory=128 << 20)
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.ON_FAILURE))
    assert answer.applied == ["cpus"]
    assert len(answer.pending) == 1
    record = h1.records.vm(VM)
    assert record is not None
    assert (record.launch.cpus, record.launch.memory, record.launch.generation) == (2, 64 << 20, 1)
    await h1.restart()
    process = h1.process()
    process.end(by_signal=9)
    await ground.until(lambda: h1.running and h1.process() is not process)
    assert h1.process().launch == wanted


async def test_a_new_limit_of_cpus_is_said_to_be_pending(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    wanted = make_launch(generation=2, cpus=2, max_cpus=8)
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.NEVER))
    assert answer.applied == ["cpus"]
    assert "does not move" in answer.pending[0]


async def test_of_two_disks_the_first_is_removed_at_a_restart_only(ground: Ground, h1: Host) -> None:
    """A disk's place in the list is its place in the machine: the second one is not to be unplugged for the first."""
    (first,) = make_launch().disks
    source = first.source.model_copy(update={"volume": "e" * 12})
    second = first.model_copy(update={"index": 1, "name": "web1-1", "source": source, "serial": "e" * 12})
    await ground.run_vm("h1", launch=make_launch(disks=[first, second]))
    grown = second.model_copy(update={"index": 0, "size": second.size * 2})
    wanted = make_launch(generation=2, disks=[grown])
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.ON_FAILURE))
    assert answer.applied == []
    assert answer.pending == ["disks: disk 0 becomes another one, which needs a restart"]
    record = h1.records.vm(VM)
    assert record is not None
    assert record.launch.disks == [first, second]
    assert record.next_launch == wanted


async def test_of_two_vnics_the_first_is_removed_at_a_restart_only(ground: Ground, h1: Host) -> None:
    vnics = [
        VnicAttachment(index=index, mac=f"52:54:00:00:00:0{index}", bridge="br-lan", tap=f"sv{VM[:10]}-{index}")
        for index in range(2)
    ]
    await ground.run_vm("h1", launch=make_launch(vnics=vnics))
    wanted = make_launch(generation=2, vnics=[vnics[1].model_copy(update={"index": 0, "tap": vnics[0].tap})])
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=wanted, restart=RestartPolicy.ON_FAILURE))
    assert (answer.applied, len(answer.pending)) == ([], 1)
    record = h1.records.vm(VM)
    assert record is not None
    assert record.launch.vnics == vnics


async def test_what_a_guest_reads_at_its_start_is_pending(ground: Ground, h1: Host) -> None:
    seed = Seed(user_data="#cloud-config\n", meta_data='{"local-hostname": "a"}\n', network_config="a: 1\n")
    image = "1" * 12
    store = ImageStore(h1.paths.images)
    store.open()
    async with store.adding(image) as folder:
        for name in ("vmlinuz", "initrd.img"):
            (folder / name).write_bytes(b"kernel")
        await write_manifest(folder, name="k", kind=ImageKind.KERNEL, files=["vmlinuz", "initrd.img"])
    boot = KernelBoot(image=image, cmdline="quiet serai.ip=10.0.0.1")
    await ground.run_vm("h1", launch=make_launch(seed=seed, boot=boot))
    # What follows from the VM's name and VNICs is no wish of anybody's.
    other = seed.model_copy(update={"meta_data": '{"local-hostname": "b"}\n', "network_config": "a: 2\n"})
    same = make_launch(generation=2, seed=other, boot=boot.model_copy(update={"cmdline": "quiet"}))
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=same, restart=RestartPolicy.ON_FAILURE))
    assert answer.pending == []
    changed = make_launch(
        generation=3,
        seed=seed.model_copy(update={"user_data": "#!/bin/sh\n"}),
        boot=boot.model_copy(update={"cmdline": "loud"}),
    )
    answer = await ground.ask("h1", VM_CONFIGURE, ConfigureVm(launch=changed, restart=RestartPolicy.ON_FAILURE))
    assert [line.partition(":")[0] for line in answer.pending] == ["cmdline", "cloud-init"]
