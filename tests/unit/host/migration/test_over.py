"""A move of which one end is over: its host was fenced, or its journal was lost."""

from __future__ import annotations

import shutil

import pytest
from tests.unit.host.ground import VM, Host
from tests.unit.host.trip import Trip, held
from tests.unit.host.welcome import over, restarted

from serai.lib.bus import BusTimeout
from serai.schema.commands.migration import MIGRATION_ABANDON, AbandonMigration, VerdictAsk
from serai.schema.errors import ConflictError
from serai.schema.lease import Claim
from serai.schema.reports import Introduction, LeaseEnd, Welcome


async def test_an_offer_that_is_over_leaves_no_qemu_at_its_destination(trip: Trip) -> None:
    await trip.prepare()
    trip.ground.welcome = over(trip.ground, 2)
    await restarted(trip.ground, trip.destination, trip.destination.restart)
    await trip.ground.until(lambda: not trip.destination.processes())
    assert (trip.destination.state(), trip.destination.store.claim(VM, 2)) == (None, Claim.ABANDONED)
    assert len(trip.source.running) == 1


@pytest.mark.parametrize("commits", [False, True])
async def test_an_offer_that_the_controller_calls_over_is_turned_down_unless_committed(
    trip: Trip, commits: bool
) -> None:
    """The controller answers what the hello said, and the move may go on meanwhile."""
    ground, h2 = trip.ground, trip.destination
    await held(trip, "completed")
    end = LeaseEnd(vm=VM, epoch=trip.epoch, offer_id=trip.offer)
    if commits:
        ground.world.release("completed")
        await ground.until(lambda: h2.running)
    claims: list[list[Claim]] = []

    def answer(said: Introduction) -> Welcome:
        claims.append([row.claim for row in said.leases])
        return ground.welcomed(give_up=[end] if len(claims) == 1 else [])

    ground.welcome = answer
    await restarted(ground, h2, h2.restart)
    if not commits:
        ground.world.release("completed")
    await trip.over()
    trip.check()
    assert trip.committed == commits
    assert claims[1:] == [[Claim.COMMITTED if commits else Claim.ABANDONED]]


async def test_an_older_offer_that_is_turned_down_leaves_a_later_one(trip: Trip) -> None:
    abandon = AbandonMigration(vm=VM, epoch=2, offer_id="an older one", reason="given up")
    assert (await trip.ground.ask("h2", MIGRATION_ABANDON, abandon)).claim is Claim.ABANDONED
    later = Trip(trip.ground, trip.source, trip.destination, epoch=3)
    await later.prepare()
    assert (await trip.ground.ask("h2", MIGRATION_ABANDON, abandon)).claim is Claim.ABANDONED
    assert len(trip.destination.processes()) == 1
    later.begin()
    await later.over()
    assert later.committed


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


async def test_a_copy_of_a_journal_decides_no_offer_that_it_does_not_know(trip: Trip) -> None:
    """It may be an older one, too. An offer that nobody was asked to prepare is turned down."""
    h2 = trip.destination
    copied = h2.paths.journal.read_bytes()
    prepared = await trip.prepare()
    await h2.kill()
    h2.process().end(by_signal=9)
    h2.paths.journal.write_bytes(copied)
    await h2.start()
    ask = VerdictAsk(vm=VM, epoch=trip.epoch, offer_id=trip.offer, journal=prepared.journal)
    abandon = AbandonMigration(**dict(ask), reason="given up")
    assert (await trip.source._ask_verdict("h2", ask)).claim is Claim.OFFERED
    assert (await trip.ground.ask("h2", MIGRATION_ABANDON, abandon)).claim is Claim.OFFERED
    assert h2.store.claim(VM, 2) is None
    unheard = abandon.model_copy(update={"journal": None})
    assert (await trip.ground.ask("h2", MIGRATION_ABANDON, unheard)).claim is Claim.ABANDONED


async def test_an_agent_that_is_refused_gives_no_verdict(trip: Trip) -> None:
    """The one that the controller knows has the same subject."""
    ground, h2 = trip.ground, trip.destination
    copy = Host("h2", ground.folder / "copy", ground.bus, ground.world, ground.clock)
    copy.paths.state.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(h2.paths.journal, copy.paths.journal)

    def answer(said: Introduction) -> Welcome:
        if said.incarnation != h2.agent._identity.incarnation:
            raise ConflictError("its state is a copy")
        return ground.welcomed()

    ground.welcome = answer
    await h2.restart()
    await h2.restart()
    await copy.start()
    ground.hosts["copy"] = copy
    await ground.until(lambda: copy.agent._refusal and h2.agent._welcomed)
    await h2.kill()
    ask = VerdictAsk(vm=VM, epoch=trip.epoch, offer_id=trip.offer)
    with pytest.raises(BusTimeout):
        await trip.source._ask_verdict("h2", ask)
    assert copy.store.leases(VM) == []
