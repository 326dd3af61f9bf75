"""The lease: which host may run a VM, and at which epoch. See core/lease.py for its rules."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from serai.schema.ids import HostName, VmId
from serai.schema.resource import Frozen


class Lease(Frozen):
    """`offered_to` is set while `highest` may go there: written durably before either end is told.

    `ended`: no epoch up to this one runs any more, by the word of an operator who fenced its host; 0 if none ended so.
    """

    vm: VmId
    epoch: int = Field(ge=1)
    host: HostName
    highest: int = Field(default=1, ge=1)
    """The highest epoch ever offered or held: an epoch that was abandoned is never offered again."""
    offered_to: HostName | None = None
    offer_id: str | None = None
    ended: int = Field(default=0, ge=0)
    updated: datetime | None = None


class Claim(StrEnum):
    """What a host's own journal says of one VM and epoch. The order of writing is the order of events."""

    HELD = "held"
    """This host may run the VM at this epoch."""
    OFFERED = "offered"
    """A migration may commit this epoch here."""
    COMMITTED = "committed"
    """The commit point: from here the VM is this host's. Also `held` from then on."""
    ABANDONED = "abandoned"
    """The offer was turned down for ever: the source may go on."""
    RELEASED = "released"
    """The VM left, or was deleted: this host never runs this epoch again."""


class LeaseRecord(Frozen):
    """One line in a host's journal."""

    vm: VmId
    epoch: int
    claim: Claim
    offer_id: str | None = None
    peer: HostName | None = None
    reason: str = ""
    port: int | None = None
    """Where this host listened for the move."""
