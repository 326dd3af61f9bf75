"""Tickets, tokens and secrets. Tickets and tokens are kept as SHA-256 only: reading the file gives nobody a way in.

Secrets (CHAP passwords, say) must be sent to hosts again and are kept as they are; the file is mode 0600.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store.tables import secrets, tickets, tokens
from serai.schema.ticket import Ticket

IMAGE_URL = "url"
"""The name of the secret that an image's URL with credentials is; see `services/image_actions.py`."""


def digest(secret: str) -> str:
    """SHA-256 in hex. The secrets are 128 random bits, so no slow hash is called for."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Tickets:
    """One-use tickets of the data channel."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def add(self, ticket: Ticket) -> None:
        """Write one, without its secret."""
        values = {
            "digest": digest(ticket.id),
            "ticket": ticket.model_dump(mode="json", exclude={"id"}),
            "expires": ticket.expires.isoformat(),
        }
        await self.connection.execute(insert(tickets).values(**values))

    async def look(self, ticket_id: str) -> Ticket | None:
        """The ticket, if there is one, expired or not; it stays."""
        query = select(tickets.c.ticket).where(tickets.c.digest == digest(ticket_id))
        found = (await self.connection.execute(query)).scalar_one_or_none()
        return None if found is None else Ticket.model_validate({"id": ticket_id, **found})

    async def take(self, ticket_id: str) -> bool:
        """Use one up: True the first time only."""
        query = delete(tickets).where(tickets.c.digest == digest(ticket_id))
        return (await self.connection.execute(query)).rowcount == 1

    async def clear(self, now: datetime) -> None:
        """Delete those that have expired."""
        await self.connection.execute(delete(tickets).where(tickets.c.expires < now.isoformat()))


class Tokens:
    """Bearer tokens of the API."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def add(self, name: str, token: str, now: datetime) -> None:
        """Let a token in, under a name; one that had the name is let in no more."""
        await self.connection.execute(
            delete(tokens).where((tokens.c.name == name) | (tokens.c.digest == digest(token)))
        )
        values = {"digest": digest(token), "name": name, "created": now.isoformat()}
        await self.connection.execute(insert(tokens).values(**values))

    async def all(self) -> dict[str, str]:
        """Digest to name."""
        rows = await self.connection.execute(select(tokens.c.digest, tokens.c.name))
        return {row.digest: row.name for row in rows}


class Secrets:
    """Secrets by owner (`vm/<id>`) and name."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def get(self, owner: str, name: str) -> str | None:
        """One, or None."""
        query = select(secrets.c.value).where(secrets.c.owner == owner, secrets.c.name == name)
        return (await self.connection.execute(query)).scalar_one_or_none()

    async def put(self, owner: str, name: str, value: str) -> None:
        """Write one, in place of an older one of the name."""
        await self.connection.execute(delete(secrets).where(secrets.c.owner == owner, secrets.c.name == name))
        await self.connection.execute(insert(secrets).values(owner=owner, name=name, value=value))

    async def drop(self, owner: str) -> None:
        """Forget all of one owner."""
        await self.connection.execute(delete(secrets).where(secrets.c.owner == owner))
