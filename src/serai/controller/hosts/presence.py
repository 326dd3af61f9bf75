"""Which hosts speak, and which fell silent. Silence makes a host `offline`, and never means that a VM is dead."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from serai.controller.hosts import observed
from serai.controller.store import Store, StoreUnavailableError
from serai.lib.clock import Clock, SystemClock
from serai.lib.tasks import Tasks
from serai.schema.ids import HostName

log = logging.getLogger(__name__)

SILENCE = 15.0
"""Seconds without a report after which a host counts as offline: three of its periods."""
LOOK = 1.0
"""Seconds between two looks at who is silent."""


class Presence:
    """When each host spoke last. Kept in memory: a write for each report would be for this alone."""

    def __init__(self, store: Store, clock: Clock | None = None, *, silence: float = SILENCE) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._silence = silence
        self._seen: dict[HostName, float] = {}
        """By host that is not offline, on the monotonic clock."""
        self._heard: dict[HostName, datetime] = {}
        self._hearing: Counter[str] = Counter()
        """By host: its reports that are being written. One that waits for the database is not silent."""
        self._tasks = Tasks("presence")

    async def start(self) -> None:
        """Watch who falls silent. Hosts known as online get a full period to speak up."""
        async with self._store.read() as view:
            for host in await view.hosts.online():
                self._seen[host.name] = self._clock.monotonic()
        self._tasks.start(self._watch_silence(), "silence")

    async def stop(self) -> None:
        """Watch no more."""
        await self._tasks.close()

    def note(self, host: HostName) -> None:
        """The host spoke."""
        self._seen[host], self._heard[host] = self._clock.monotonic(), self._clock.now()

    @contextlib.contextmanager
    def hearing(self, host: HostName) -> Iterator[None]:
        """What the host said is being written."""
        self._hearing[host] += 1
        try:
            yield
        finally:
            self._hearing[host] -= 1

    def heard(self, host: HostName) -> datetime | None:
        """When the host spoke last, if it did since this controller was started."""
        return self._heard.get(host)

    async def _watch_silence(self) -> None:
        while True:
            await self._clock.sleep(LOOK)
            now = self._clock.monotonic()
            for name, seen in list(self._seen.items()):
                if now - seen < self._silence or self._hearing[name]:
                    continue
                log.warning("host %s has not answered for %.0f s", name, now - seen)
                try:
                    async with self._store.transaction() as tx:
                        await observed.gone_silent(tx, name, now - seen, self._heard.get(name))
                except StoreUnavailableError:
                    # Its word may have been lost to the same failure: it gets a full period to speak up.
                    self._seen[name] = self._clock.monotonic()
                    continue
                # It may have spoken while this was written; then its next report brings it back.
                if self._seen.get(name) == seen:
                    del self._seen[name]
