"""Tickets of the data channel: issued here, redeemed by the host that serves the stream."""

from __future__ import annotations

import functools
from datetime import timedelta

from serai.controller.store import Store, Transaction
from serai.lib.bus import Bus, Message, Subscription
from serai.lib.ids import new_secret
from serai.schema.encoding import encode, parse
from serai.schema.errors import UnauthorizedError
from serai.schema.subjects import Subjects
from serai.schema.ticket import Purpose, RedeemTicket, Ticket

LIFE = timedelta(seconds=60)


async def issue(
    tx: Transaction, purpose: Purpose, *, resource: str, holder: str, server: str, params: dict[str, str] | None = None
) -> str:
    """The id of a one-use ticket, good for a minute."""
    ticket = Ticket(
        id=new_secret(),
        purpose=purpose,
        resource=resource,
        holder=holder,
        server=server,
        expires=tx.now + LIFE,
        params=params or {},
    )
    await tx.tickets.add(ticket)
    return ticket.id


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
