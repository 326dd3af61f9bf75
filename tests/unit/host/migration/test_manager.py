"""Two host agents and a VM between them: whatever is killed, cut or refused, one copy runs, or none with a reason."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.host.ground import VM, Ground, Host
from tests.unit.host.trip import PHASES, Trip, held

from serai.drivers.hypervisor.fake import FakeMachine
from serai.host.store import CLAIMS_KEPT, COMMANDS_KEPT
from serai.lib.ids import new_id
from serai.schema.commands.envelope import Reply, Request
from serai.schema.commands.migration import MIGRATION_CANCEL, CancelMigration, CancelResult, Verdict, VerdictAsk
from serai.schema.commands.vm import VM_PAUSE
from serai.schema.encoding import encode
from serai.schema.errors import UnauthorizedError, UnavailableError
from serai.schema.lease import Claim
from serai.schema.subjects import Subjects
from serai.schema.vm import RestartPolicy, VmState


async def test_a_vm_moves(trip: Trip) -> None:
    trip.begin()
    await trip.over()
    trip.check()
    assert trip.committed
    assert trip.destination.running
    assert trip.destination.network.announced == ["52:54:00:00:00:01"]
    assert not trip.ground.waits


async def test_a_vm_moves_there_and_back_and_there(trip: Trip) -> None:
    h1, h2 = trip.source, trip.destination
    hosts = [h1, h2]
    for number in range(4):
        again = Trip(trip.ground, hosts[0], hosts[1], epoch=2 + number, offer=f"offer{number}")
        again.begin()
        await again.over()
        again.check()
        assert again.committed
        hosts.reverse()


async def test_many_moves_leave_no_more_in_the_journals_than_a_few(trip: Trip) -> None:
    hosts = [trip.source, trip.destination]
    for number in range(3 * CLAIMS_KEPT):
        trip.ground.world.fail_at = "device" if number % 8 == 0 else None
        again = Trip(trip.ground, hosts[0], hosts[1], epoch=2 + number, offer=f"offer{number}")
        again.begin()
        await again.over()
        assert again.committed == (number % 8 != 0)
        if again.committed:
            hosts.reverse()
    for host in hosts:
        assert len(host.store.leases()) <= CLAIMS_KEPT + 1
        assert len(host.journal.all("command")) <= COMMANDS_KEPT
        assert len(host.journal.all("generation")) <= 1
    assert [host.store.may_run(VM) is not None for host in hosts] == [True, False]


async def test_a_vm_that_left_is_spoken_for_by_its_new_host_alone(trip: Trip) -> None:
    moving = asyncio.create_task(trip._move(RestartPolicy.NEVER))
    await trip.ground.until(moving.done)
    command = Request(id=new_id(), command=VM_PAUSE.name, key=f"vm/{VM}", body={"vm": VM})
    # The controller may not know yet that it left: it is not carried out, and asked again.
    with pytest.raises(UnavailableError, match="h1 does not hold the lease"):
        await trip.ground.bus.request(Subjects.vm_command("h1", VM), encode(command), 5.0)
    answer = await trip.ground.bus.request(Subjects.vm_command("h2", VM), encode(command), 5.0)
    assert Reply.model_validate_json(answer).state == "done"
    assert trip.destination.state() is VmState.PAUSED


@pytest.mark.parametrize("when", ["undecided", "decided"])
async def test_only_the_source_of_a_move_gets_its_verdict(trip: Trip, when: str) -> None:
    if when == "undecided":
        await held(trip, "completed")
    else:
        moving = asyncio.create_task(trip._move(RestartPolicy.NEVER))
        await trip.ground.until(moving.done)
    ask = VerdictAsk(vm=VM, epoch=trip.epoch, offer_id=trip.offer)
    before = trip.destination.store.leases(VM)
    with pytest.raises(UnauthorizedError, match="h3 is not the source"):
        await trip.ground.bus.request(Subjects.verdict("h2", "h3"), encode(ask), 5.0)
    assert trip.destination.store.leases(VM) == before
    if when == "undecided":
        trip.ground.world.release("completed")
        await trip.over()
        trip.check()
        assert trip.committed


async def test_an_offer_whose_qemu_is_being_adopted_is_not_turned_down(trip: Trip) -> None:
    await held(trip, "completed")
    await trip.destination.kill()
    answers = trip.destination.hold_adoption(VM)
    await trip.destination.start(wait=False)
    trip.ground.world.release("completed")
    await trip.ground.until(lambda: (found := trip.source.store.vm(VM)) and found.outgoing and found.outgoing.sent)
    ask = VerdictAsk(vm=VM, epoch=2, offer_id="offer")
    answer = await trip.ground.bus.request(Subjects.verdict("h2", "h1"), encode(ask), 5.0)
    assert Verdict.model_validate_json(answer).claim is Claim.OFFERED
    answers.set()
    await trip.over()
    trip.check()
    assert trip.committed
    assert trip.destination.running


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("end", ["source", "destination"])
async def test_an_agent_is_killed(trip: Trip, phase: str, end: str) -> None:
    host: Host = getattr(trip, end)
    await held(trip, phase)
    await host.kill()
    trip.ground.world.release(phase)
    await trip.ground.turn()
    await host.start()
    await trip.over()
    trip.check()
    assert (trip.destination if trip.committed else trip.source).running


@pytest.mark.parametrize("line", range(1, 10))
@pytest.mark.parametrize("end", ["source", "destination"])
async def test_an_agent_is_killed_at_any_line_of_its_journal(trip: Trip, line: int, end: str) -> None:
    host: Host = getattr(trip, end)
    host.die_after(line)
    trip.begin()
    assert trip.task is not None
    await trip.ground.until(lambda: not host.up or (trip.task is not None and trip.task.done()))
    if not host.up:
        await host.restart()
    await trip.over()
    trip.check()
    assert (trip.destination if trip.committed else trip.source).running


@pytest.mark.parametrize("line", range(1, 10))
@pytest.mark.parametrize("end", ["source", "destination"])
async def test_a_machine_loses_power_at_any_line_of_its_journal(trip: Trip, line: int, end: str) -> None:
    """With the lines that were not on its disk yet."""
    host: Host = getattr(trip, end)
    host.die_after(line, power=True)
    trip.begin()
    assert trip.task is not None
    await trip.ground.until(lambda: not host.up or (trip.task is not None and trip.task.done()))
    if not host.up:
        await host.restart(rebooted=True)
    await trip.over()
    trip.check()


async def test_a_source_that_loses_power_after_the_commit_does_not_run_the_vm_again(trip: Trip) -> None:
    """Though none of its batches has come to its disk since the move began."""
    trip.source.journal.disk.clear()
    trip.begin()
    await trip.ground.until(lambda: trip.destination.running)
    trip.source.lose_power()
    await trip.source.restart(rebooted=True)
    await trip.over()
    trip.check()
    assert trip.committed
    assert trip.destination.running


async def test_a_destination_that_loses_power_after_the_commit_has_the_vm_still(trip: Trip) -> None:
    """Though none of its batches has come to its disk since it was prepared."""
    await held(trip, "completed", RestartPolicy.ON_FAILURE)
    trip.destination.journal.disk.clear()
    trip.ground.world.release("completed")
    await trip.ground.until(lambda: trip.source.state() is None)
    trip.destination.lose_power()
    await trip.destination.restart(rebooted=True)
    await trip.over()
    trip.check()
    assert trip.committed
    await trip.ground.until(lambda: trip.destination.running)


@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "still silent"])
async def test_an_agent_that_is_killed_as_it_prepares_says_so(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, adopted: bool
) -> None:
    """Its QEMU is there, half made: that is no VM that is on the host already."""
    trip = Trip(ground, await ground.host("h1"), await ground.host("h2"))
    await ground.run_vm("h1")
    reached = asyncio.Event()

    async def waits(self: FakeMachine, *_: object) -> int:
        reached.set()
        await asyncio.Event().wait()
        return 0

    async def silent(*_: object) -> None:
        raise UnavailableError("QMP does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(FakeMachine, "prepare_incoming", waits)
        first = asyncio.ensure_future(trip.prepare())
        await asyncio.wait_for(reached.wait(), 10)
        await trip.destination.kill()
        await asyncio.gather(first, return_exceptions=True)  # nobody hears a dead agent: it is asked again
    hypervisor, adopt = trip.destination.hypervisor, trip.destination.hypervisor.adopt
    if not adopted:
        monkeypatch.setattr(hypervisor, "adopt", silent)
    await trip.destination.start()
    if adopted:  # nobody need ask for it
        await ground.until(lambda: not trip.destination.processes())
        assert trip.destination.store.claim(VM, 2) is Claim.ABANDONED
    trip.begin()
    await ground.until(lambda: trip.reason != "")
    assert "h2's agent was restarted while it prepared the move" in trip.reason
    assert "(to: h2). Move it again: serai vm migrate web1 --to h2." in trip.reason
    monkeypatch.setattr(hypervisor, "adopt", adopt)
    await trip.over()
    trip.check()
    again = Trip(ground, trip.source, trip.destination, epoch=3, offer="again")
    again.begin()
    await again.over()
    assert again.committed


async def test_a_late_cancel_of_another_move_is_too_late(trip: Trip) -> None:
    await held(trip, "pre-switchover")
    body = CancelMigration(vm=VM, offer_id="an older one")
    answer: CancelResult = await trip.ground.ask("h1", MIGRATION_CANCEL, body)
    assert answer.too_late
    trip.ground.world.release("pre-switchover")
    await trip.over()
    trip.check()
    assert trip.committed
