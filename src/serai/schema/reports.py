"""What hosts tell the controller unasked. A VM's own report is in vm.py."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from serai.schema.host import HostFacts
from serai.schema.ids import HostId, HostName, PoolId, VmId
from serai.schema.lease import LeaseRecord
from serai.schema.resource import Frozen
from serai.schema.vm import VmReport
from serai.schema.volume import PoolStatus


class Hello(Frozen):
    """An agent's first message, at start and after each reconnect; the controller answers `Welcome`."""

    host: HostName
    facts: HostFacts


class Welcome(Frozen):
    host_id: HostId
    time: datetime


class HostReport(Frozen):
    """Every few seconds and after each reconnect: all VMs that the host has, and its pools."""

    host: HostName
    time: datetime
    vms: list[VmReport] = Field(default_factory=list)
    silent: list[VmId] = Field(default_factory=list)
    """VMs whose QEMU may be there and has not answered the agent since it started."""
    leases: list[LeaseRecord] = Field(default_factory=list)
    """The last record of each VM and epoch that is not yet confirmed by the controller."""
    pools: dict[PoolId, PoolStatus] = Field(default_factory=dict)
    bridges: list[str] | None = None
    """Names, sorted; none: it could not be found out."""
