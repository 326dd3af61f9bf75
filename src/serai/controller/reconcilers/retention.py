"""What the controller throws away: old events, jobs that ended long ago, tickets that nobody used."""

from __future__ import annotations

import logging
from datetime import timedelta

from serai.controller.store import Store

log = logging.getLogger(__name__)

KEEP_EVENTS = timedelta(days=30)
"""Longer than any client's absence from which it would resume by `?after=N`."""
KEEP_JOBS = timedelta(days=90)
PERIOD = 3600.0
"""Seconds between two rounds."""


async def tidy(store: Store) -> None:
    """One round. Event numbers are never given again, so `?after=N` stays true."""
    async with store.transaction() as tx:
        events = await tx.events.clear(tx.now - KEEP_EVENTS)
        jobs = await tx.jobs.clear(tx.now - KEEP_JOBS)
        await tx.tickets.clear(tx.now)
    if events or jobs:
        log.info("cleared %d events and %d jobs", events, jobs)
