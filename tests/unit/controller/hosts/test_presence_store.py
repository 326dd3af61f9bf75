"""The gateway while its store cannot be written: a host whose word is not written is not silent for that."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.controller.kit import turn

from serai.controller.hosts.listening import listening
from serai.controller.services.rights import Rights
from serai.controller.store import Store, database
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.lib.membus import MemBus
from serai.schema.encoding import encode
from serai.schema.host import HostFacts, HostState
from serai.schema.ids import HostName, PoolId
from serai.schema.reports import HostReport, Incarnation, Introduction
from serai.schema.subjects import Subjects
from serai.schema.volume import ExportKind, Pool, PoolSpec, PoolStatus

INCARNATION = Incarnation(journal="1" * 12, starts=1)
FACTS = HostFacts(cpus=4, memory=8 << 30, accel="tcg", qemu_version="10.0", machine_types=["pc-q35-10.0"])


class Kit:
    """A gateway that knows a host h1 with a pool, on a clock of its own."""

    def __init__(self, store: Store, bus: MemBus, clock: ManualClock) -> None:
        self.store, self.bus, self.clock = store, bus, clock
        self.pool = new_id(PoolId)

    async def begin(self) -> None:
        await self.bus.request(
            Subjects.hello("h1"),
            encode(Introduction(host=HostName("h1"), incarnation=INCARNATION, facts=FACTS)),
            timeout=5,
        )
        async with self.store.transaction() as tx:
            spec = PoolSpec(host=HostName("h1"), export=ExportKind.NONE)
            pool = Pool(name="p", id=self.pool, generation=1, created=tx.now, spec=spec, status=PoolStatus())
            await tx.pools.insert(pool)

    async def report(self) -> None:
        """One that says something new, which is to be written."""
        pools = {self.pool: PoolStatus(state="ready")}
        said = HostReport(host=HostName("h1"), incarnation=INCARNATION, time=self.clock.now(), pools=pools)
        await self.bus.request(Subjects.host_report("h1"), encode(said), timeout=60)

    async def state(self) -> HostState:
        async with self.store.read() as view:
            return (await view.hosts.find("h1")).status.state

    async def advance(self, seconds: float, until: Callable[[], bool] = lambda: True) -> None:
        await turn(self.clock, seconds, until)


@pytest.fixture
async def kit(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    monkeypatch.setattr(database, "BUSY_MS", 50)
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    shutil.copyfile(empty_database, tmp_path / "serai.db")
    store = await Store.open(tmp_path / "serai.db", clock)
    bus = MemBus()
    async with listening(bus, store, Rights(), clock):
        made = Kit(store, bus, clock)
        await made.begin()
        yield made
    await bus.close()
    await store.close()


async def test_a_host_whose_report_waits_for_the_store_is_not_silent(kit: Kit) -> None:
    async with kit.store.transaction():
        saying = asyncio.ensure_future(kit.report())
        await kit.advance(40)
    await saying
    await kit.advance(13)
    assert await kit.state() is HostState.ONLINE


async def test_silence_is_watched_on_after_the_store_failed(kit: Kit, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "serai.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await kit.advance(16, lambda: kit.store.writes.failures > 0)
    # Its own word may have been lost to the same failure: it has a full period to speak up.
    await kit.advance(13)
    assert await kit.state() is HostState.ONLINE
    newest = kit.store.bell.newest
    await kit.advance(4, lambda: kit.store.bell.newest > newest)
    assert await kit.state() is HostState.OFFLINE
