"""The source of a move: it goes on, stands still until it knows, or has nothing left to run."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.host.ground import VM, make_launch
from tests.unit.host.trip import CAPABILITIES, PHASES, Trip, held

from serai.schema.commands.migration import (
    MIGRATION_CANCEL,
    MIGRATION_START,
    CancelMigration,
    CancelResult,
    StartMigration,
)
from serai.schema.commands.vm import VM_CONFIGURE, VM_RELEASE, ConfigureResult, ConfigureVm, ReleaseVm
from serai.schema.ids import HostName
from serai.schema.vm import RestartPolicy, VmState


async def test_a_vm_with_pending_changes_of_its_shape_stays(trip: Trip) -> None:
    body = ConfigureVm(launch=make_launch(generation=2, memory=128 << 20), restart=RestartPolicy.NEVER)
    answer: ConfigureResult = await trip.ground.ask("h1", VM_CONFIGURE, body)
    assert answer.undo == {answer.pending[0]: "--memory 64M"}
    trip.begin()
    await trip.over()
    trip.check()
    assert not trip.committed
    assert "serai vm restart web1" in trip.reason
    record = trip.source.store.vm(VM)
    assert record is not None
    assert (record.launch.memory, record.launch.generation) == (64 << 20, 1)
    assert record.next_launch == body.launch


@pytest.mark.parametrize("phase", PHASES)
async def test_qemus_migration_fails(trip: Trip, phase: str) -> None:
    trip.ground.world.fail_at = phase
    trip.begin()
    await trip.over()
    trip.check()
    assert not trip.committed
    assert trip.source.running
    last = {"active": "setup", "pre-switchover": "precopy", "device": "switch", "completed": "switch"}[phase]
    assert f"QEMU's migration failed in its phase {last}: made to fail before {phase}" in trip.reason
    assert "h2" in trip.reason


async def test_a_failure_is_told_in_the_destinations_words_too(trip: Trip) -> None:
    await held(trip, "device")
    process = trip.destination.process()
    process.mark("failed", error="load of device failed")
    await trip.ground.turn()
    trip.ground.world.fail_at = "device"
    trip.ground.world.release("device")
    await trip.over()
    trip.check()
    assert "on h2: the destination's QEMU could not load the state: load of device failed" in trip.reason


async def test_a_failure_that_the_destination_cannot_be_asked_of_says_so(trip: Trip) -> None:
    trip.ground.world.fail_at = "device"
    trip.source.cut = True
    trip.begin()
    await trip.over()
    trip.check()
    assert "h2 could not be asked" in trip.reason


@pytest.mark.parametrize("phase", PHASES)
async def test_cancelled(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    body = CancelMigration(vm=VM, offer_id="offer")
    answer: CancelResult = await trip.ground.ask("h1", MIGRATION_CANCEL, body)
    await trip.ground.turn()
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert answer.too_late == trip.committed
    assert trip.committed == (phase in ("device", "completed"))
    assert (trip.destination if trip.committed else trip.source).running


@pytest.mark.parametrize("phase", PHASES)
async def test_the_sources_qemu_is_killed(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    trip.source.process().end(by_signal=9)
    # What the destination had is not whole: its QEMU says so.
    trip.destination.process().mark("failed")
    await trip.ground.turn()
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert not trip.committed
    assert not trip.source.running


async def test_a_guest_that_powers_itself_off_on_the_move_stays_off(trip: Trip) -> None:
    await trip.ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1))
    await trip.ground.run_vm("h1", epoch=2, restart=RestartPolicy.ON_FAILURE)
    again = Trip(trip.ground, trip.source, trip.destination, epoch=3)
    await held(again, "pre-switchover")
    trip.source.process().guest_ends()
    trip.ground.world.release("pre-switchover")
    await again.over()
    assert not again.committed
    assert trip.source.state() is VmState.STOPPED
    assert "powered itself off" in trip.source.reason()
    assert not trip.source.processes()


async def test_a_move_says_whose_word_it_waits_for(trip: Trip) -> None:
    """Also to who asks a restarted agent."""
    await held(trip, "completed")
    trip.source.cut = True
    trip.ground.world.release("completed")
    said = "h2's journal: the bus is away."
    await trip.ground.until(lambda: said in trip.ground.waits)
    await trip.source.restart()
    trip.ground.waits.clear()
    start = StartMigration(
        vm=VM,
        epoch=trip.epoch,
        offer_id=trip.offer,
        destination=HostName("h2"),
        journal=trip.destination.agent._identity.incarnation.journal,
        address="",
        port=1,
        tls_hostname="",
        capabilities=CAPABILITIES,
    )
    asking = asyncio.create_task(trip.ground.ask("h1", MIGRATION_START, start))
    await trip.ground.until(lambda: said in trip.ground.waits)
    trip.source.cut = False
    await trip.ground.until(asking.done)
    assert asking.result().committed


async def test_the_bus_is_cut_between_the_last_state_and_the_verdict(trip: Trip) -> None:
    await held(trip, "completed")
    trip.source.cut = True
    trip.ground.world.release("completed")
    await trip.ground.until(lambda: trip.destination.running)
    for _ in range(50):
        trip.ground.clock.advance(0.1)
        await trip.ground.turn(10)
    assert trip.source.state() is VmState.MIGRATING
    assert not trip.source.running
    trip.source.cut = False
    await trip.over()
    trip.check()
    assert trip.committed
