"""A move of which one end is over: its host was fenced, or its journal was lost."""

from __future__ import annotations

from tests.unit.host.ground import VM
from tests.unit.host.trip import Trip, held
from tests.unit.host.welcome import over, restarted

from serai.schema.commands.migration import VerdictAsk
from serai.schema.lease import Claim


async def test_an_offer_that_is_over_leaves_no_qemu_at_its_destination(trip: Trip) -> None:
    await trip.prepare()
    trip.ground.welcome = over(trip.ground, 2)
    await restarted(trip.ground, trip.destination, trip.destination.restart)
    await trip.ground.until(lambda: not trip.destination.processes())
    assert (trip.destination.state(), trip.destination.store.claim(VM, 2)) == (None, Claim.ABANDONED)
    assert len(trip.source.running) == 1


async def test_a_source_that_waits_for_a_verdict_is_ended_when_its_epoch_is_over(trip: Trip) -> None:
    """It was fenced in mid-move, and the destination that could decide answers nobody."""
    await held(trip, "completed")
    trip.source.cut = True
    trip.ground.welcome = over(trip.ground, 1)
    await restarted(trip.ground, trip.source, trip.source.restart)
    await trip.ground.until(lambda: not trip.source.processes())
    assert (trip.source.state(), trip.source.store.claim(VM, 1)) == (None, Claim.RELEASED)
    trip.source.cut = False
    trip.ground.world.release("completed")
    await trip.over()
    assert trip.ground.most <= 1


async def test_a_journal_that_was_lost_decides_no_offer_of_the_old_one(trip: Trip) -> None:
    prepared = await trip.prepare()
    await trip.destination.kill()
    trip.destination.paths.journal.unlink()
    await trip.destination.start()

    async def verdict(journal: str | None) -> Claim:
        ask = VerdictAsk(vm=VM, epoch=trip.epoch, offer_id=trip.offer, journal=journal)
        return (await trip.source._ask_verdict("h2", ask)).claim

    assert await verdict(prepared.journal) is Claim.OFFERED
    assert await verdict(None) is Claim.OFFERED, "a QEMU of it runs here, of which the journal knows nothing"
    await trip.destination.vms.end_strays()
    assert await verdict(prepared.journal) is Claim.OFFERED
    assert await verdict(None) is Claim.ABANDONED
