"""What a host gives up when the controller tells it that it is over, and what waits until it has been told."""

from __future__ import annotations

import pytest
from tests.unit.host.ground import OTHER, VM, Ground, make_launch
from tests.unit.host.welcome import over, restarted

from serai.host import agent
from serai.host.vm.agent import VmAgent
from serai.host.vm.supervisor import AUTOSTART_PATIENCE
from serai.schema.commands.host import HOST_INTRODUCE, Introduce
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.errors import ConflictError, HostError
from serai.schema.lease import Claim
from serai.schema.reports import HostReport, Introduction, LeaseEnd, Welcome
from serai.schema.vm import RestartPolicy, VmState


async def test_a_vm_that_is_over_is_ended_and_the_next_hello_says_so(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_vm("h1")
    ground.welcome = over(ground, 1)
    await restarted(ground, host, host.restart)
    assert (host.processes(), host.state()) == ([], None)
    assert host.store.claim(VM, 1) is Claim.RELEASED
    assert [row.claim for hello in ground.hellos for row in hello.leases] == [Claim.HELD, Claim.RELEASED]


async def test_one_that_cannot_be_given_up_delays_no_other(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again with the next hello."""
    host = await ground.host("h1")
    await ground.run_two()
    release = VmAgent.release
    fails = True

    async def sometimes(self: VmAgent, epoch: int, reason: str) -> bool:
        if fails and self.vm == VM:
            raise HostError("the journal takes nothing")
        return await release(self, epoch, reason)

    def answer(said: Introduction) -> Welcome:
        live = [row for row in said.leases if row.claim is Claim.HELD]
        return ground.welcomed(give_up=[LeaseEnd(vm=row.vm, epoch=row.epoch) for row in live])

    monkeypatch.setattr(VmAgent, "release", sometimes)
    ground.welcome = answer
    await host.restart()
    await ground.until(lambda: len(host.processes()) == 1)
    assert (host.state(VM), host.state(OTHER)) == (VmState.RUNNING, None)
    assert not host.agent._welcomed
    fails = False
    await ground.until(lambda: host.agent._welcomed)
    assert host.processes() == []


async def test_after_a_reboot_vms_start_once_the_controller_has_answered(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_vm("h1", autostart=True)
    ground.welcome = lambda _: None
    await host.power_cycle()
    await ground.until(lambda: ground.clock.monotonic() > AUTOSTART_PATIENCE - 1)
    assert host.processes() == []
    ground.welcome = lambda _: ground.welcomed()
    await ground.until(lambda: host.running)


async def test_after_a_reboot_without_a_controller_what_its_disk_guards_starts(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_vm("h1", autostart=True)
    await ground.run_vm("h1", autostart=True, launch=make_launch(vm=OTHER, name="web2", disks=[]))
    ground.welcome = lambda _: None
    await host.power_cycle()
    await ground.until(lambda: host.running)
    assert ground.clock.monotonic() >= AUTOSTART_PATIENCE
    await ground.turn()
    assert [process.launch.name for process in host.running] == ["web1"]
    ground.welcome = lambda _: ground.welcomed()
    await ground.until(lambda: len(host.running) == 2)


async def test_an_agent_that_starts_again_before_the_autostart_asks_too(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_vm("h1", autostart=True, launch=make_launch(vm=OTHER, name="web2", disks=[]))
    await ground.run_vm("h1", restart=RestartPolicy.ALWAYS, autostart=False)
    ground.welcome = lambda _: None
    await host.power_cycle()
    await ground.turn()
    await host.restart()
    for _ in range(100):
        ground.clock.advance(0.1)
        await ground.turn(10)
    assert host.processes() == []
    ground.welcome = lambda _: ground.welcomed()
    await ground.until(lambda: host.running)
    await ground.until(lambda: host.store.boot() == "boot 2")
    await host.restart()
    for _ in range(100):
        ground.clock.advance(0.1)
        await ground.turn(10)
    assert [process.launch.name for process in host.running] == ["web2"], "only that one is to start by itself"


async def test_a_refused_agent_starts_nothing_after_a_reboot(ground: Ground) -> None:
    """Nor does a controller that refused it, and is away since, let it start anything."""

    def refuse(_: Introduction) -> Welcome:
        raise ConflictError("its state is a copy")

    host = await ground.host("h1")
    await ground.run_vm("h1", autostart=True)
    ground.welcome = refuse
    await host.power_cycle()
    await ground.until(lambda: host.agent._refusal)
    ground.welcome = lambda _: None
    await ground.until(lambda: ground.clock.monotonic() > AUTOSTART_PATIENCE + 5)
    assert host.processes() == []
    ground.welcome = lambda _: ground.welcomed()
    await ground.until(lambda: host.running)


async def test_what_is_not_given_up_yet_delays_every_autostart(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise HostError("the journal takes nothing")

    host = await ground.host("h1")
    await ground.run_vm("h1", epoch=2)
    await ground.run_vm("h1", autostart=True, launch=make_launch(vm=OTHER, name="web2"))
    ground.welcome = over(ground, 2)
    monkeypatch.setattr(VmAgent, "release", fails)
    await host.power_cycle()
    await ground.until(lambda: ground.clock.monotonic() > AUTOSTART_PATIENCE + 5)
    assert host.processes() == []
    monkeypatch.undo()
    await ground.until(lambda: [process.launch.name for process in host.running] == ["web2"])


async def test_an_autostart_of_what_is_over_never_happens(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_vm("h1", autostart=True)
    ground.welcome = over(ground, 1)
    await restarted(ground, host, host.power_cycle)
    await ground.turn()
    assert (host.processes(), host.state(), host.store.claim(VM, 1)) == ([], None, Claim.RELEASED)


async def test_a_new_journal_ends_the_qemus_of_the_old_one(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_vm("h1")
    await host.kill()
    host.paths.journal.unlink()
    ground.welcome = over(ground, strays=True)
    await restarted(ground, host, host.start)
    assert host.processes() == []
    assert [hello.strays for hello in ground.hellos] == [[VM], []]


async def test_strays_are_named_when_the_controller_asks_too(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_two()
    assert (await ground.ask("h1", HOST_INTRODUCE, Introduce())).strays == []
    await host.kill()
    host.paths.journal.unlink()
    await host.start()
    assert (await ground.ask("h1", HOST_INTRODUCE, Introduce())).strays == [VM, OTHER]


async def test_a_refused_agent_says_why_once(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Introduction) -> Welcome:
        raise ConflictError("its state is a copy")

    said: list[str] = []
    monkeypatch.setattr(agent.log, "error", lambda text, *args: said.append(text % args))
    host = await ground.host("h1")
    ground.welcome = refuse
    ground.hellos.clear()
    await host.restart()
    await ground.until(lambda: len(ground.hellos) > 2)
    assert said == ["the controller refuses this agent: its state is a copy."]


async def test_an_agent_that_is_not_believed_says_hello_at_once(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.until(lambda: ground.host_reports)

    def answer(_: Introduction) -> Welcome:
        ground.disbelieves = False
        return ground.welcomed()

    ground.hellos.clear()
    ground.welcome, ground.disbelieves = answer, True
    await host.agent._hello_and_report()
    assert (len(ground.hellos), host.agent._welcomed) == (1, True)


async def test_what_the_controller_confirmed_is_not_reported_again(ground: Ground) -> None:
    host = await ground.host("h1")
    await ground.run_vm("h1")

    async def report() -> HostReport:
        await host.agent.report_all()
        return ground.host_reports[-1]

    await report()
    assert (await report()).leases == []
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1))
    assert [(row.epoch, row.claim) for row in (await report()).leases] == [(1, Claim.RELEASED)]
    assert (await report()).leases == []
