"""Rights are granted once the hosts whose word is missing have reported, and follow what journals tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serai.controller.services.rights import Rights, UnheardError
from serai.controller.store import Store
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.schema.errors import StaleError
from serai.schema.host import Host, HostSpec, HostState, HostStatus
from serai.schema.ids import HostId, HostName, VmId
from serai.schema.lease import Claim, Lease, LeaseRecord
from serai.schema.reports import StorePosition
from serai.schema.vm import Vm, VmSpec, VmState, VmStatus

ALL = frozenset({"h1", "h2", "h3"})


class World:
    """A store with three hosts and a VM, and the rights of one run of a controller after another."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.vm = new_id()
        self.rights = Rights()

    async def begin(self) -> None:
        async with self.store.transaction() as tx:
            await self.rights.begin(tx)
            for name in sorted(ALL):
                online = HostStatus(state=HostState.ONLINE)
                host = Host(
                    name=HostName(name), id=new_id(HostId), generation=1, created=tx.now, spec=HostSpec(), status=online
                )
                await tx.hosts.insert(host)
            status = VmStatus(state=VmState.RUNNING)
            vm = Vm(name="web1", id=VmId(self.vm), generation=1, created=tx.now, spec=VmSpec(), status=status)
            await tx.vms.insert(vm)
            self.rights.created(tx, VmId(self.vm))
        async with self.store.transaction() as tx:
            await self.rights.first(tx, VmId(self.vm), HostName("h1"))

    async def restart(self) -> None:
        self.rights = Rights()
        async with self.store.transaction() as tx:
            await self.rights.begin(tx)

    async def report(self, host: str, *claims: tuple[int, Claim], offer: str | None = None) -> None:
        records = [LeaseRecord(vm=VmId(self.vm), epoch=epoch, claim=claim, offer_id=offer) for epoch, claim in claims]
        async with self.store.transaction() as tx:
            await self.rights.report(tx, HostName(host), records)

    async def waits(self) -> frozenset[str]:
        async with self.store.read() as view:
            return await self.rights.waits_for(view, VmId(self.vm))

    async def lease(self) -> Lease:
        async with self.store.read() as view:
            return await view.leases.need(VmId(self.vm))

    async def kinds(self) -> list[str]:
        async with self.store.read() as view:
            return [json.loads(text)["kind"] for _, text in await view.events.after(0, 99)]


@pytest.fixture
async def world(tmp_path: Path, empty_database: Path) -> AsyncIterator[World]:
    shutil.copyfile(empty_database, tmp_path / "serai.db")
    store = await Store.open(tmp_path / "serai.db", ManualClock())
    made = World(store)
    await made.begin()
    yield made
    await store.close()


async def test_a_holder_that_confirms_its_epoch_is_waited_for_alone(world: World) -> None:
    await world.restart()
    assert await world.waits() == ALL
    await world.report("h1", (1, Claim.HELD))
    assert await world.waits() == frozenset()


async def test_a_record_that_its_holder_does_not_confirm_waits_for_all(world: World) -> None:
    await world.restart()
    await world.report("h1")
    assert await world.waits() == {"h2", "h3"}
    async with world.store.transaction() as tx:
        with pytest.raises(UnheardError, match="h2, h3 may run the VM"):
            await world.rights.advance(tx, await tx.leases.need(VmId(world.vm)), HostName("h1"))
        with pytest.raises(UnheardError):
            await world.rights.offer(tx, VmId(world.vm), HostName("h2"), "one")
    await world.report("h2")
    await world.report("h3")
    async with world.store.transaction() as tx:
        assert (await world.rights.advance(tx, await tx.leases.need(VmId(world.vm)), HostName("h1"))).epoch == 2


async def test_a_vm_of_an_earlier_run_gets_its_first_lease_after_all_have_reported(world: World) -> None:
    async with world.store.transaction() as tx:
        await world.rights.forget(tx, VmId(world.vm))
    await world.restart()
    assert await world.waits() == ALL


async def test_a_later_claim_is_adopted_and_the_old_holder_told_to_release(world: World) -> None:
    await world.report("h1", (1, Claim.HELD))
    await world.report("h2", (5, Claim.COMMITTED))
    held = await world.lease()
    assert (held.host, held.epoch, held.highest) == ("h2", 5, 5)
    assert "lease.adopted" in await world.kinds()
    async with world.store.read() as view:
        assert [(one.host, one.body["epoch"]) for one in await view.leftovers.all()] == [("h1", 1)]


async def test_a_lease_advances_only_if_it_is_the_one_that_was_released(world: World) -> None:
    released = await world.lease()
    await world.report("h2", (5, Claim.COMMITTED))
    with pytest.raises(StaleError, match="on h2 by now"):
        async with world.store.transaction() as tx:
            await world.rights.advance(tx, released, HostName("h1"))
    held = await world.lease()
    assert (held.host, held.epoch) == ("h2", 5)


async def test_a_lease_that_a_fence_has_ended_advances(world: World) -> None:
    await world.report("h1", (1, Claim.HELD))
    held = await world.lease()
    async with world.store.transaction() as tx:
        await world.rights.fence(tx, HostName("h1"))
        after = await world.rights.advance(tx, held, HostName("h2"))
    assert (after.host, after.epoch) == ("h2", 2)


async def test_a_claim_above_the_record_burns_its_epoch(world: World) -> None:
    await world.report("h2", (7, Claim.ABANDONED))
    held = await world.lease()
    assert (held.host, held.epoch, held.highest) == ("h1", 1, 7)


@pytest.mark.parametrize("host", ["h1", "h2"])
async def test_either_ends_word_withdraws_an_offer(world: World, host: str) -> None:
    await world.report("h1", (1, Claim.HELD))
    async with world.store.transaction() as tx:
        await world.rights.offer(tx, VmId(world.vm), HostName("h2"), "one")
    await world.report("h3", (2, Claim.ABANDONED), offer="one")
    assert (await world.lease()).offered_to == "h2"
    await world.report(host, (2, Claim.ABANDONED), offer="one")
    held = await world.lease()
    assert (held.offered_to, held.highest) == (None, 2)


async def test_a_restored_database_waits_for_all_hosts_that_are_not_fenced(world: World) -> None:
    async with world.store.transaction() as tx:
        await world.rights.restored(tx, "a test")
    await world.report("h1", (1, Claim.HELD))
    assert await world.waits() == {"h2", "h3"}
    await world.report("h2")
    async with world.store.transaction() as tx:
        host = await tx.hosts.find("h3")
        await tx.hosts.update_status(host.id, state=HostState.FENCED)
        await world.rights.fence(tx, HostName("h3"))
    assert await world.waits() == frozenset()
    assert [kind for kind in await world.kinds() if kind.startswith("store.")] == ["store.restored", "store.complete"]


async def test_positions_of_the_past_are_known(world: World) -> None:
    async with world.store.read() as view:
        first = await view.lineage.position()
    await world.restart()
    await world.report("h1", (1, Claim.HELD))
    async with world.store.transaction() as tx:
        await world.rights.advance(tx, await tx.leases.need(VmId(world.vm)), HostName("h1"))
    async with world.store.read() as view:
        present = await view.lineage.position()
        assert present.sequence > first.sequence
        assert await view.lineage.knows(first)
        assert await view.lineage.knows(present)
        # The earlier run ended before that, and nobody knows a later one, or another run.
        for run, sequence in ((first.run, present.sequence), (present.run, present.sequence + 1), ("f" * 12, 0)):
            assert not await view.lineage.knows(StorePosition(run=run, sequence=sequence))


async def test_a_grant_that_is_not_committed_proves_nothing(world: World) -> None:
    await world.restart()
    for host in sorted(ALL - {"h3"}):
        await world.report(host)
    with pytest.raises(ZeroDivisionError):
        async with world.store.transaction() as tx:
            world.rights.created(tx, VmId(world.vm))
            raise ZeroDivisionError
    assert await world.waits() == {"h3"}
