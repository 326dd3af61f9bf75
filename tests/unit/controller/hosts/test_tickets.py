"""Tickets of the data channel."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.controller.kit import Kit

from serai.lib.ids import new_secret
from serai.schema.encoding import encode
from serai.schema.errors import (
    UnauthorizedError,
)
from serai.schema.subjects import Subjects
from serai.schema.ticket import Purpose, RedeemTicket, Ticket


async def test_a_ticket_is_redeemed_once_by_its_two_ends(kit: Kit) -> None:
    def ticket(seconds: float) -> Ticket:
        ends = {"holder": "a", "server": "host.h1", "expires": kit.clock.now() + timedelta(seconds=seconds)}
        return Ticket.model_validate({"id": new_secret(), "purpose": Purpose.CONSOLE, "resource": "vm", **ends})

    good, late = ticket(10), ticket(-1)
    async with kit.store.transaction() as tx:
        await tx.tickets.add(good)
        await tx.tickets.add(late)

    async def redeem(asked: Ticket, holder: str = "a", server: str = "host.h1", by: str = "h1") -> Ticket:
        body = RedeemTicket(ticket=asked.id, holder=holder, server=server)
        answer = await kit.bus.request(Subjects.redeem(by), encode(body), timeout=5)
        return Ticket.model_validate_json(answer)

    # Another bearer; another server, with its own name or with the right one.
    for holder, server, by in (("x", "host.h1", "h1"), ("a", "host.h2", "h2"), ("a", "host.h1", "h2")):
        with pytest.raises(UnauthorizedError):
            await redeem(good, holder, server, by)
    assert await redeem(good) == good
    with pytest.raises(UnauthorizedError):
        await redeem(good)
    with pytest.raises(UnauthorizedError):
        await redeem(late)
