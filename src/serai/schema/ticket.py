"""One-use tickets for the data channel (`lib/stream`), issued by the controller."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from serai.schema.resource import Frozen

STREAM_PORT = 7443
"""Where every host serves the data channel, at its management address."""


class Purpose(StrEnum):
    IMAGE_READ = "image.read"
    """The holder reads an image's files from the serving host."""
    IMAGE_WRITE = "image.write"
    """The holder writes an uploaded image to the serving host."""
    CONSOLE = "console"
    """The holder joins a VM's serial console on the serving host."""


class Ticket(Frozen):
    """`id` is a secret of 128 random bits; `holder` and `server` are the PKI identities of the two ends."""

    id: str = Field(min_length=22)
    purpose: Purpose
    resource: str
    holder: str
    server: str
    expires: datetime
    params: dict[str, str] = Field(default_factory=dict)


class RedeemTicket(Frozen):
    """On `Subjects.redeem(host)`, from the ticket's server; answered with the `Ticket`, once."""

    ticket: str
    holder: str
    server: str
