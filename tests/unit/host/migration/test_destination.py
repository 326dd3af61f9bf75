"""The destination of a move: its journal decides, and what fails after that is the VM's own."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.host.ground import VM, Ground
from tests.unit.host.trip import PHASES, Trip, held

from serai.drivers.hypervisor.base import MachineEvent, MigrationSetup
from serai.drivers.hypervisor.fake import FakeMachine
from serai.schema.commands.migration import MIGRATION_ABANDON, AbandonMigration
from serai.schema.errors import SeraiError
from serai.schema.lease import Claim
from serai.schema.vm import RestartPolicy, VmState


async def test_a_disk_that_fails_as_the_vm_arrives_pauses_it(
    trip: Trip, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is gone before the VM is said to run here: QEMU's own state tells."""

    async def fails(self: FakeMachine) -> None:
        self.process.io_error()

    ground.world.hold_at("completed")
    trip.begin()
    await ground.until(trip.destination.processes)
    monkeypatch.setattr(FakeMachine, "cont", fails)
    ground.world.release("completed")
    await ground.until(lambda: trip.destination.state() is VmState.PAUSED)
    assert trip.committed is not False
    assert "paused: QEMU is in io-error" in trip.destination.reason()
    await trip.over()
    assert trip.destination.state() is VmState.PAUSED


@pytest.mark.parametrize("phase", PHASES)
async def test_the_destinations_qemu_is_killed(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    trip.destination.process().end(by_signal=9)
    await trip.ground.turn()
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert not trip.committed
    assert trip.source.running
    assert "signal 9" in trip.reason


async def test_a_qemu_that_ended_before_its_agent_heard_that_it_has_all_is_not_committed(trip: Trip) -> None:
    await held(trip, "completed")
    process = trip.destination.process()
    assert process.machine is not None

    def on_event(event: MachineEvent) -> None:
        if event.data.get("status") == "completed":
            process.end(by_signal=9)

    process.machine.subscribe(on_event)
    trip.ground.world.release("completed")
    await trip.over()
    trip.check()
    assert not trip.committed
    assert trip.source.running
    assert "signal 9" in trip.reason


@pytest.mark.parametrize("restart", [RestartPolicy.NEVER, RestartPolicy.ON_FAILURE])
async def test_the_destinations_qemu_is_killed_after_the_commit(trip: Trip, restart: RestartPolicy) -> None:
    trip.begin(restart)
    await trip.over()
    trip.destination.process().end(by_signal=9)
    if restart is RestartPolicy.NEVER:
        await trip.ground.until(lambda: trip.destination.state() is VmState.CRASHED)
    else:
        await trip.ground.until(lambda: trip.destination.running and trip.destination.state() is VmState.RUNNING)
    trip.check()
    assert trip.committed


@pytest.mark.parametrize("amid", ["start", "listen"])
async def test_an_offer_that_is_turned_down_while_it_is_prepared_leaves_no_qemu(
    trip: Trip, monkeypatch: pytest.MonkeyPatch, amid: str
) -> None:
    ground, h2 = trip.ground, trip.destination
    prepare_incoming = FakeMachine.prepare_incoming
    if amid == "start":
        answers = h2.hold_start()
    else:
        answers = asyncio.Event()

        async def slow(self: FakeMachine, setup: MigrationSetup, host: str, ports: tuple[int, int]) -> int:
            await answers.wait()
            return await prepare_incoming(self, setup, host, ports)

        monkeypatch.setattr(FakeMachine, "prepare_incoming", slow)
    preparing = asyncio.create_task(trip.prepare())
    await ground.until(h2.processes, ticking=False)
    body = AbandonMigration(vm=VM, epoch=trip.epoch, offer_id=trip.offer, reason="given up")
    abandoning = asyncio.create_task(ground.ask("h2", MIGRATION_ABANDON, body))
    await ground.until(lambda: h2.store.claim(VM, trip.epoch) is Claim.ABANDONED, ticking=False)
    answers.set()
    assert (await abandoning).claim is Claim.ABANDONED
    with pytest.raises(SeraiError):
        await preparing
    assert (h2.processes(), h2.store.vm(VM), h2.vms.find(VM)) == ([], None, None)
    again = Trip(ground, trip.source, h2, epoch=trip.epoch + 1, offer="again")
    again.begin()
    await again.over()
    assert again.committed
