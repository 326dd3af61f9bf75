"""Tickets of the data channel, redeemed by the host that serves the stream."""

from __future__ import annotations

import functools

from serai.controller.store import Store
from serai.lib.bus import Bus, Message, Subscription
from serai.schema.encoding import encode, parse
from serai.schema.errors import UnauthorizedError
from serai.schema.subjects import Subjects
from serai.schema.ticket import RedeemTicket


async def serve_tickets(bus: Bus, store: Store) -> Subscription:
    """Answer hosts that redeem tickets, until it is unsubscribed."""
    return await bus.subscribe(Subjects.redeem("*"), functools.partial(_redeem, store))


async def _redeem(store: Store, message: Message) -> bytes:
    asked = parse(RedeemTicket, message.payload, message.subject)
    if asked.server != f"host.{Subjects.host_of(message.subject)}":
        raise UnauthorizedError("the ticket is redeemed by its own server only", field="server", value=asked.server)
    async with store.transaction() as tx:
        ticket = await tx.tickets.look(asked.ticket)
        # Looked at before it is used up: a wrong bearer must not be able to spoil it for the right one.
        if ticket is None or ticket.holder != asked.holder or ticket.server != asked.server:
            raise UnauthorizedError("the ticket is not known, or not for these two ends")
        await tx.tickets.take(asked.ticket)
        await tx.tickets.clear(tx.now)
        expired = ticket.expires <= tx.now
    if expired:
        raise UnauthorizedError("the ticket has expired", remedy="Ask for a new one.")
    return encode(ticket)
