"""The host agent on the bus: commands once each and in order, and reports that are whole."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest
from tests.unit.host.ground import FACTS, OTHER, VM, Ground, Host, vm_start

from serai.host.agent import ADOPTION_PATIENCE
from serai.host.storage.pools import HostPools
from serai.lib.bus import BusTimeout
from serai.lib.ids import new_id
from serai.schema.commands.envelope import Request
from serai.schema.commands.host import HOST_INTRODUCE, Introduce
from serai.schema.commands.vm import VM_PAUSE, VM_START, VM_STOP, SignalVm, StopVm
from serai.schema.encoding import encode, to_dict
from serai.schema.errors import HostError, NotFoundError, StaleError
from serai.schema.lease import Claim
from serai.schema.reports import Incarnation, StorePosition
from serai.schema.subjects import Subjects
from serai.schema.vm import VmState
from serai.schema.volume import PoolStatus


async def test_a_repeated_id_is_answered_alike_and_carried_out_once(ground: Ground, h1: Host) -> None:
    command = new_id()
    first = await ground.send("h1", VM_START, vm_start(), id=command)
    pid = h1.process().pid
    await ground.ask("h1", VM_STOP, StopVm(vm=VM, force=True))
    assert await ground.send("h1", VM_START, vm_start(), id=command) == first
    await h1.restart()
    assert await ground.send("h1", VM_START, vm_start(), id=command) == first
    assert not h1.processes()
    assert first.result is not None
    assert first.result["pid"] == pid


async def test_a_reply_waits_for_its_answer_to_be_on_the_disk(ground: Ground, h1: Host) -> None:
    """Whose power is cut before that carries the command out again; who is asked meanwhile works."""
    command = new_id()
    h1.journal.disk.clear()
    asking = [asyncio.create_task(ground.send("h1", VM_START, vm_start(), id=command)) for _ in range(2)]
    await ground.until(lambda: h1.state() is VmState.RUNNING)
    asking.append(asyncio.create_task(ground.send("h1", VM_START, vm_start(), id=command)))
    asking.append(asyncio.create_task(ground.send("h1", VM_PAUSE, SignalVm(vm=VM))))
    await ground.until(lambda: h1.state() is VmState.PAUSED)
    assert not any(task.done() for task in asking)
    h1.lose_power()
    await asyncio.gather(*asking, return_exceptions=True)
    await h1.restart(rebooted=True)
    assert h1.store.answer(command) is None
    reply = await ground.send("h1", VM_START, vm_start(), id=command)
    assert reply.state == "done"
    assert h1.running
    assert h1.store.answer(command) == reply


async def test_a_disk_that_takes_no_answer_is_an_error_of_the_command(
    ground: Ground, h1: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = new_id()

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        patch.setattr(os, "fsync", fails)  # nor can it be rewritten
        with pytest.raises(HostError, match=r"the host's journal .*Input/output error"):
            await ground.send("h1", VM_STOP, StopVm(vm=VM), id=command)
    reply = await ground.send("h1", VM_STOP, StopVm(vm=VM), id=command)
    assert (reply.state, reply.error and reply.error.code) == ("failed", "not_found")


async def test_an_agent_remembers_where_the_database_stood(ground: Ground, h1: Host) -> None:
    """With the claim that the command causes: a power cut does not part them. Late commands do not set it back."""
    run = "2" * 12
    for sequence in (7, 5):
        await ground.send("h1", VM_START, vm_start(), position=StorePosition(run=run, sequence=sequence))
    h1.lose_power()
    await h1.kill()
    await h1.start()
    answer = await ground.ask("h1", HOST_INTRODUCE, Introduce())
    assert answer.seen == StorePosition(run=run, sequence=7)
    assert [(row.vm, row.epoch, row.claim) for row in answer.leases] == [(VM, 1, Claim.HELD)]


async def test_an_older_generation_is_refused(ground: Ground, h1: Host) -> None:
    await ground.ask("h1", VM_START, vm_start(), generation=5)
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

    async def broken(self: HostPools) -> dict[str, PoolStatus]:
        tried.append(self)
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(HostPools, "statuses", broken)
        await ground.until(lambda: len(tried) > 1)
    before = len(ground.host_reports)
    await ground.until(lambda: len(ground.host_reports) > before)


async def test_a_host_without_the_bridge_names_itself_and_reports_which_it_has(ground: Ground, h1: Host) -> None:
    await ground.until(lambda: any(report.bridges == ["br-lan"] for report in ground.host_reports))
    h1.network.bridges.clear()
    with pytest.raises(NotFoundError, match="host h1 has no bridge br-lan") as caught:
        await ground.run_vm("h1")
    assert (caught.value.info.field, caught.value.info.value) == ("spec.bridge", "br-lan")
    assert "--host h1 --bridge br-lan" in (caught.value.info.remedy or "")
    assert (h1.state(), "could not start: host h1 has no bridge br-lan" in h1.reason()) == (VmState.STOPPED, True)
    await ground.until(lambda: ground.host_reports[-1].bridges == [])


async def test_a_silent_qemu_keeps_nobody_waiting_but_who_asks_for_it(ground: Ground, h1: Host) -> None:
    await ground.run_two()
    await h1.kill()
    answers = h1.hold_adoption(VM)
    ground.host_reports.clear()
    await h1.start(wait=False)
    report = await ground.ask("h1", VM_PAUSE, SignalVm(vm=OTHER), key=f"vm/{OTHER}")
    assert report.state is VmState.PAUSED
    pausing = asyncio.create_task(ground.ask("h1", VM_PAUSE, SignalVm(vm=VM)))
    await ground.turn()
    assert not pausing.done()
    # A full report without it would be taken to say that it is not here.
    assert not ground.host_reports
    answers.set()
    assert (await pausing).state is VmState.PAUSED
    await ground.until(lambda: ground.host_reports)
    whole = ground.host_reports[0]
    assert ({one.vm for one in whole.vms}, whole.silent) == ({VM, OTHER}, [])


async def test_the_full_report_does_not_wait_for_ever(ground: Ground, h1: Host) -> None:
    await ground.run_two()
    await h1.kill()
    h1.hold_adoption(VM)
    ground.host_reports.clear()
    began = ground.clock.monotonic()
    await h1.start(wait=False)
    await ground.until(lambda: ground.host_reports)
    assert ground.clock.monotonic() > began + ADOPTION_PATIENCE
    report = ground.host_reports[0]
    assert ([one.vm for one in report.vms], report.silent) == ([OTHER], [VM])


async def test_a_command_for_another_incarnation_gets_no_answer(ground: Ground) -> None:
    """Not even a refusal: the agent that is meant may answer, too."""
    host = await ground.host("h1")
    mine = host.agent._identity.incarnation

    async def answered(to: Incarnation) -> bool:
        request = Request(id=new_id(), command=VM_START.name, key=f"vm/{VM}", body=to_dict(vm_start()), to=to)
        try:
            await ground.bus.request(Subjects.host_command("h1"), encode(request), 0.2)
        except BusTimeout:
            return False
        return True

    assert not await answered(Incarnation(journal="f" * 12, starts=1))
    assert not await answered(mine.model_copy(update={"starts": mine.starts + 1}))
    assert host.processes() == []
    assert await answered(mine)
    assert len(host.running) == 1
