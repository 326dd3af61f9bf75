"""What hosts tell the controller, and the positions by which both ends know who speaks. A VM's report is in vm.py."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from serai.schema.host import HostFacts
from serai.schema.ids import HostId, HostName, Id, PoolId, VmId
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.resource import Frozen
from serai.schema.vm import VmReport
from serai.schema.volume import PoolStatus


class Incarnation(Frozen):
    """One run of a host's agent. `journal` is made with the host's journal; `starts` grows with each start."""

    journal: Id
    starts: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.journal}.{self.starts}"


class StorePosition(Frozen):
    """A point in the history of the controller's database.

    `run` is made at each start of a controller; `sequence` grows with each change of a lease, and with each VM that is
    created or deleted.
    """

    run: Id
    sequence: int = Field(ge=0)


class Introduction(Frozen):
    """All that an agent has to say of itself: its hello, answered `Welcome`, and its reply to `host.introduce`.

    `seen`: the highest position of the database that its journal holds. `leases`: every claim that binds the host, and
    the newest of each VM. `strays`: VMs that run here without a record in the journal.
    """

    host: HostName
    incarnation: Incarnation
    facts: HostFacts
    seen: StorePosition | None = None
    leases: list[LeaseRecord] = Field(default_factory=list)
    strays: list[VmId] = Field(default_factory=list)


class LeaseEnd(Frozen):
    """`epoch` of a VM, and all lower ones, are over on this host. With `offer_id` it is an offer that is to be turned
    down, unless it has been committed meanwhile.
    """

    vm: VmId
    epoch: int
    offer_id: str | None = None


class Welcome(Frozen):
    """`give_up`: what the host must release before it says hello again. `end_strays`: it also ends each QEMU that its
    journal does not know.
    """

    host_id: HostId
    time: datetime
    give_up: list[LeaseEnd] = Field(default_factory=list)
    end_strays: bool = False


class ConfirmedClaim(Frozen):
    """A claim that the controller has written, so that no report need repeat it."""

    vm: VmId
    epoch: int
    claim: Claim


class ReportReceipt(Frozen):
    """The answer to a host's full report. `introduce`: it was not believed; the host is to say hello first."""

    confirmed: list[ConfirmedClaim] = Field(default_factory=list)
    introduce: bool = False


class HostReport(Frozen):
    """Every few seconds and after each reconnect: all VMs that the host has, and its pools.

    `sequence` counts on with those of the same agent's VM reports.
    """

    host: HostName
    incarnation: Incarnation
    sequence: int = 0
    time: datetime
    vms: list[VmReport] = Field(default_factory=list)
    silent: list[VmId] = Field(default_factory=list)
    """VMs whose QEMU may be there and has not answered the agent since it started."""
    leases: list[LeaseRecord] = Field(default_factory=list)
    """The last record of each VM and epoch that the controller has not confirmed yet."""
    pools: dict[PoolId, PoolStatus] = Field(default_factory=dict)
    bridges: list[str] | None = None
    """Names, sorted; none: it could not be found out."""
