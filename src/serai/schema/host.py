"""A physical machine, what it can do, and what it has."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from serai.schema.resource import Frozen, Name, Resource


class Ability(Frozen):
    """One thing that a probe looked for on this machine. `remedy` says what to install or change when it is missing."""

    name: str
    found: bool
    detail: str = ""
    remedy: str = ""
    required: bool = False


class HostFacts(Frozen):
    """What an agent measured of its machine. `memory` in bytes; `accel` is what a guest was really seen to run on."""

    cpus: int
    memory: int
    accel: str
    qemu_version: str
    machine_types: list[str] = Field(default_factory=list)
    migration_capabilities: list[str] = Field(default_factory=list)
    cpu_model: str = ""
    addresses: dict[str, str] = Field(default_factory=dict)
    """Role to address: `management`, `migration`, `storage`."""
    abilities: list[Ability] = Field(default_factory=list)
    agent_version: str = ""


class HostState(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"


class HostSpec(Frozen):
    """`schedulable=False` keeps new VMs away without touching those that run."""

    schedulable: bool = True
    memory_reserve: int = 512 << 20
    """Bytes that placement leaves to the machine itself (the agent, tgtd, page cache)."""


class HostStatus(Frozen):
    state: HostState = HostState.OFFLINE
    seen: datetime | None = None
    facts: HostFacts | None = None
    cpus_committed: int = 0
    memory_committed: int = 0
    vms: int = 0


class Host(Resource[HostSpec, HostStatus]):
    kind: str = "host"


class HostCreate(Frozen):
    name: Name
    spec: HostSpec = HostSpec()
