"""The store: what the controller knows, in one database.

`read()` gives a view of one moment; `transaction()` is the only way to write. There is one writer at a time, so what a
transaction reads is what it writes upon, and events get their numbers in the order of commits. Desired state, job and
events are written in the same transaction, and whoever waits for any of them is woken after the commit.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from sqlalchemy import literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serai.controller.store.database import migrate, open_engine
from serai.controller.store.events import Events
from serai.controller.store.failure import Health
from serai.controller.store.hosts import Hosts
from serai.controller.store.images import Images
from serai.controller.store.jobs import Jobs
from serai.controller.store.leases import Leases
from serai.controller.store.leftovers import Leftovers
from serai.controller.store.lineage import Lineage
from serai.controller.store.networks import Networks
from serai.controller.store.pools import Pools, Volumes
from serai.controller.store.resources import Resources
from serai.controller.store.secrets import Secrets, Tickets, Tokens
from serai.controller.store.vms import Vms
from serai.lib.clock import Clock, SystemClock
from serai.schema.errors import UnavailableError

log = logging.getLogger(__name__)

EVENTS_KEPT = 1000
"""Events kept in memory: a follower that reads on time never goes to the database for them."""


class View:
    """The tables as of one moment."""

    def __init__(self, connection: AsyncConnection, clock: Clock) -> None:
        self.connection = connection
        self.now = clock.now()
        self.hosts = Hosts(connection)
        self.pools = Pools(connection)
        self.volumes = Volumes(connection)
        self.images = Images(connection)
        self.networks = Networks(connection)
        self.vms = Vms(connection)
        self.jobs = Jobs(connection)
        self.events = Events(connection)
        self.leases = Leases(connection)
        self.lineage = Lineage(connection)
        self.leftovers = Leftovers(connection, self.now)
        self.tickets = Tickets(connection)
        self.tokens = Tokens(connection)
        self.secrets = Secrets(connection)

    def of(self, kind: str) -> Resources[Any, Any]:
        """The table of a kind of resource."""
        every: list[Resources[Any, Any]]
        every = [self.hosts, self.pools, self.volumes, self.images, self.networks, self.vms]
        return next(table for table in every if table.kind == kind)

    async def names(self, ids: Mapping[str, Collection[str]]) -> dict[str, dict[str, str]]:
        """The names of resources, by kind and id, in one query; those that are gone are left out."""
        names: dict[str, dict[str, str]] = {kind: {} for kind in ids}
        if ids:
            tables = {kind: self.of(kind).table.c for kind in ids}
            queries = [select(literal(kind), of.id, of.name).where(of.id.in_(ids[kind])) for kind, of in tables.items()]
            for kind, resource_id, name in await self.connection.execute(union_all(*queries)):
                names[kind][resource_id] = name
        return names


class Transaction(View):
    """A view that writes. All of it is written at the end of the block, or nothing if the block raises."""

    def __init__(self, connection: AsyncConnection, clock: Clock) -> None:
        super().__init__(connection, clock)
        self.committed: list[Callable[[], None]] = []
        self.emitted: list[tuple[int, str]] = []

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call this once the transaction is durable; never if it fails."""
        self.committed.append(callback)

    async def emit(self, kind: str, resource: str, resource_id: str = "", message: str = "", /, **data: Any) -> int:
        """Write an event (`vm.state`, `vm/web1`, the id, words for people, facts) and return its number."""
        number, text = await self.events.add(self.now, kind, resource, resource_id, message, data)
        self.emitted.append((number, text))
        return number


class Bell:
    """Wakes those who wait for events. Numbers, not signals, so that nobody misses one that came a moment before.

    It remembers the newest events itself: a hundred followers of the stream cost the database nothing.
    """

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self._kept: deque[tuple[int, str]] = deque()
        self._known_from = newest
        """All events after this number are kept."""
        self._waiters: set[asyncio.Future[None]] = set()

    def recent(self, after: int, limit: int) -> list[tuple[int, str]] | None:
        """(number, JSON) of the events that follow a number; None if some may be older than what is kept."""
        if after < self._known_from:
            return None
        begin = bisect_right(self._kept, after, key=itemgetter(0))
        return list(islice(self._kept, begin, begin + limit))

    def ring(self, events: Sequence[tuple[int, str]]) -> None:
        """These are committed."""
        self.newest = max(self.newest, events[-1][0])
        self._kept.extend(events)
        while len(self._kept) > EVENTS_KEPT:
            self._known_from = self._kept.popleft()[0]
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def beyond(self, seq: int) -> int:
        """Return the newest number, once there is one greater than `seq`."""
        while self.newest <= seq:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self.newest


class Store:
    """The database of one controller; see `open`."""

    def __init__(self, file: Path, reader: AsyncEngine, writer: AsyncEngine, clock: Clock, newest: int) -> None:
        self._reader = reader
        self._writer = writer
        self._reads = Health(file, "read")
        self.writes = Health(file, "written")
        """Whether transactions can be written."""
        self.clock = clock
        self.bell = Bell(newest)
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[Any] | None = None
        self._closed = False
        self._readers = 0
        self._unread = asyncio.Event()
        """Set while nobody reads."""
        self._unread.set()

    @classmethod
    async def open(cls, file: Path, clock: Clock | None = None) -> Self:
        """Open (or make) the database in an SQLite file and bring its tables up to date.

        Raises StoreUnavailableError.
        """
        clock = clock or SystemClock()
        writer = open_engine(file, write=True)
        reader = open_engine(file, write=False)
        try:
            with Health(file, "opened").watched():
                await migrate(writer)
                async with reader.connect() as connection:
                    newest = await Events(connection).newest()
        except BaseException:
            await writer.dispose()
            await reader.dispose()
            raise
        return cls(file, reader, writer, clock, newest)

    async def close(self) -> None:
        """Close all connections, once those at work are done; who comes later is refused.

        A message may still be at work when its subscription has ended: it must not open the database again.
        """
        self._closed = True
        # Not under the lock: a reader may write, too.
        await self._unread.wait()
        async with self._lock:
            await self._reader.dispose()
            await self._writer.dispose()

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the controller is going down", remedy="Ask again when it is back.")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[View]:
        """One moment's view; it never waits for a writer. Raises StoreUnavailableError."""
        self._check_open()
        self._readers += 1
        self._unread.clear()
        try:
            with self._reads.watched():
                async with self._reader.connect() as connection:
                    yield View(connection, self.clock)
        finally:
            self._readers -= 1
            if not self._readers:
                self._unread.set()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """The writer. Not to be nested; keep it short: nothing but the database is awaited inside.

        Raises StoreUnavailableError: nothing was written then.
        """
        if self._holder is not None and self._holder is asyncio.current_task():
            raise RuntimeError("a transaction inside a transaction would wait for itself")
        failures = self.writes.failures
        async with self._lock:
            self._check_open()
            # Each attempt may take as long as a lock is waited for: a queue of them would be answered too late.
            self.writes.check(failures)
            self._holder = asyncio.current_task()
            try:
                with self.writes.watched():
                    async with self._writer.connect() as connection:
                        transaction = Transaction(connection, self.clock)
                        yield transaction
                        await self._commit(transaction)
            finally:
                self._holder = None

    async def _commit(self, transaction: Transaction) -> None:
        # A cancelled task must not leave it unknown whether this was written, nor waiters asleep if it was.
        work = asyncio.ensure_future(transaction.connection.commit())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            if work.exception() is None:
                self._announce(transaction)
            raise
        self._announce(transaction)

    def _announce(self, transaction: Transaction) -> None:
        for callback in transaction.committed:
            callback()
        if transaction.emitted:
            self.bell.ring(transaction.emitted)
