"""A physical machine, what it can do, and what it has."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from serai.schema.ids import HostId, HostName
from serai.schema.resource import Description, Frozen, Labels, Resource
from serai.schema.units import SIZE_MAX, Size

KVM_ABILITY = "kvm"
SANDBOX_ABILITY = "qemu-sandbox"


class Ability(Frozen):
    """One thing that a probe looked for on this machine. `remedy` says what to install or change when it is missing."""

    name: str
    found: bool
    detail: str = ""
    remedy: str = ""
    required: bool = False


class HypervisorFacts(Frozen):
    """What the hypervisor on a machine was seen to do. `accel` is what a guest really ran on: `kvm` or `tcg`.

    `suppress_vmdesc`: QEMU's migration stream ends with its end mark; without that nothing moves to or from this host.
    """

    accel: str
    qemu_version: str
    machine_types: list[str] = Field(default_factory=list)
    migration_capabilities: list[str] = Field(default_factory=list)
    suppress_vmdesc: bool = False
    cpu_model: str = ""
    cpu_flags: list[str] = Field(default_factory=list)
    """As the kernel names them; those of the first processor."""
    abilities: list[Ability] = Field(default_factory=list)


class HostFacts(HypervisorFacts):
    """What an agent measured of its machine. `memory` in bytes."""

    cpus: int
    memory: int
    addresses: dict[str, str] = Field(default_factory=dict)
    """Role to address: `management`, `migration`, `storage`."""
    agent_version: str = ""
    certificates: dict[str, datetime] = Field(default_factory=dict)
    """Identity to the end of its certificate."""

    def missing(self, name: str) -> Ability | None:
        """The ability of that name, if it was looked for and not found."""
        return next((one for one in self.abilities if one.name == name and not one.found), None)

    @property
    def emulated(self) -> str:
        """That guests are emulated here, and why; empty where they run on KVM."""
        if self.accel == "kvm":
            return ""
        kvm = self.missing(KVM_ABILITY)
        return f"emulated ({self.accel})" + (f": {kvm.detail}" if kvm is not None else "")


class HostState(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"
    FENCED = "fenced"
    """Off, by an operator's word: it gets no VM and is not believed until it has given up what it held."""


class HostSpec(Frozen):
    """`schedulable=False` keeps new VMs away without touching those that run."""

    schedulable: bool = True
    memory_reserve: int = 512 << 20
    """Bytes that placement leaves to the machine itself (the agent, tgtd, page cache)."""


class Fence(Frozen):
    """Who said that the host is off, when, and why."""

    since: datetime
    by: str
    reason: str = ""


class HostLeftover(Frozen):
    """What a host has yet to clear away: it did not answer when that was due."""

    what: str
    command: str
    why: str
    since: datetime


class HostStatus(Frozen):
    state: HostState = HostState.OFFLINE
    fence: Fence | None = None
    seen: datetime | None = None
    """When it spoke last."""
    facts: HostFacts | None = None
    bridges: list[str] | None = None
    """Names, by its last report; none: it has not said."""
    leftovers: list[HostLeftover] = Field(default_factory=list)
    cpus_committed: int = 0
    memory_committed: int = 0
    vms: int = 0


class Host(Resource[HostSpec, HostStatus]):
    kind: str = "host"
    name: HostName
    id: HostId


class HostEdit(Frozen):
    """Only what is given changes. None of it touches VMs that run."""

    schedulable: bool | None = None
    memory_reserve: Size | None = Field(default=None, ge=0, le=SIZE_MAX)
    labels: Labels | None = None
    description: Description | None = None


class HostFence(Frozen):
    """`is_off`: the caller has seen that the machine is off, or will never run again."""

    is_off: bool = False
    reason: str = Field(default="", max_length=1024)
