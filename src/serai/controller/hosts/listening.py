"""All that the controller has on the bus, put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from serai.controller.hosts.documents import Documents
from serai.controller.hosts.gateway import Gateway
from serai.controller.hosts.introductions import Introductions
from serai.controller.hosts.presence import Presence
from serai.controller.hosts.reports import Reports
from serai.controller.hosts.tickets import serve_tickets
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.lib.bus import Bus
from serai.lib.clock import Clock


@dataclass(frozen=True)
class HostLinks:
    """All hosts: `gateway` sends them commands, `presence` knows when they spoke."""

    gateway: Gateway
    presence: Presence


@contextlib.asynccontextmanager
async def listening(bus: Bus, store: Store, rights: Rights, clock: Clock | None = None) -> AsyncIterator[HostLinks]:
    """Listen inside the block, as a new run of the controller; all known hosts are asked to introduce themselves."""
    async with store.transaction() as tx:
        await rights.begin(tx)
    gateway, presence = Gateway(bus, store, rights, clock), Presence(store, clock)
    documents = Documents(store, gateway, rights)
    introductions = Introductions(store, gateway, presence, rights, documents)
    reports = Reports(bus, store, presence, rights, introductions)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(documents.stop)
        for part in (presence, gateway, reports, introductions):
            await part.start()
            stack.push_async_callback(part.stop)
        stack.push_async_callback((await serve_tickets(bus, store)).unsubscribe)
        yield HostLinks(gateway, presence)
