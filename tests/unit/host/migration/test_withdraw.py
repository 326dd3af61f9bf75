"""The source's promise that it never sent the last state of an offer."""

from __future__ import annotations

import pytest
from tests.unit.host.ground import VM
from tests.unit.host.trip import CAPABILITIES, Trip, held

from serai.schema.commands.migration import (
    MIGRATION_START,
    MIGRATION_WITHDRAW,
    MigrationEndpoint,
    StartMigration,
    WithdrawMigration,
)
from serai.schema.errors import StaleError
from serai.schema.lease import Claim
from serai.schema.vm import RestartPolicy, VmState


async def withdraw(trip: Trip) -> bool:
    body = WithdrawMigration(vm=VM, epoch=trip.epoch, offer_id=trip.offer, reason="given up")
    return (await trip.ground.ask(trip.source.name, MIGRATION_WITHDRAW, body)).never_sent


async def start(trip: Trip, prepared: MigrationEndpoint) -> None:
    ends = {"address": prepared.address, "port": prepared.port, "tls_hostname": "", "journal": prepared.journal}
    which = {"vm": VM, "epoch": trip.epoch, "offer_id": trip.offer, "destination": "h2"}
    body = StartMigration.model_validate({**which, **ends, "capabilities": CAPABILITIES})
    await trip.ground.ask(trip.source.name, MIGRATION_START, body)


async def test_what_was_promised_is_never_sent(trip: Trip) -> None:
    """Though the command to send it comes late, and to an agent that was started again; the next offer may be."""
    prepared = await trip.prepare()
    assert await withdraw(trip)
    assert trip.source.store.claim(VM, trip.epoch) is Claim.ABANDONED
    for _ in range(2):
        with pytest.raises(StaleError, match="epoch 2 of VM web1 is abandoned here"):
            await start(trip, prepared)
        await trip.source.restart()
        assert await withdraw(trip)
    assert (trip.source.state(), len(trip.source.running)) == (VmState.RUNNING, 1)


@pytest.mark.parametrize("phase", ["active", "pre-switchover"])
async def test_a_move_before_its_switch_is_cancelled_first(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    assert await withdraw(trip)
    assert trip.source.state() is VmState.RUNNING
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert (trip.committed, len(trip.source.running)) == (False, 1)
    assert trip.source.store.claim(VM, trip.epoch) is Claim.ABANDONED


@pytest.mark.parametrize("phase", ["device", "completed"])
async def test_nothing_is_promised_once_the_switch_has_begun(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    assert not await withdraw(trip)
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert trip.committed


async def test_nothing_is_promised_of_a_vm_that_has_left(trip: Trip) -> None:
    trip.begin(RestartPolicy.NEVER)
    await trip.over()
    assert trip.committed
    assert not await withdraw(trip)
    assert trip.source.store.claim(VM, trip.epoch) is None
