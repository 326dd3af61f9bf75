"""Virtual machines: what is wanted of one, what it is, and what may be asked of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from serai.schema.ids import HostName, HostRef, ImageRef, NetworkRef, NewName, PoolRef, VmId, VolumeId, VolumeRef
from serai.schema.network import Address
from serai.schema.resource import Condition, Create, Description, Frozen, Labels, Resource
from serai.schema.units import SIZE_MAX, Size

MEMORY_MIN = 32 << 20
MEMORY_MAX = 16 << 40
"""More than any machine has: a figure beyond it is a slip of the hand."""
ORDER_MAX = 1_000_000
DEVICES_MAX = 15
"""Disks, and VNICs, of one VM. An edit has the same bound as a creation: what is stored must be readable again."""
CMDLINE_MAX = 2048
"""Linux on x86 takes no longer command line."""
USER_DATA_MAX = 64 << 10
"""It travels twice in one bus message (1 MiB), in a launch and in a document, up to six times as long
as JSON escapes make it."""
STOP_MAX = 86400.0


class MachineKind(StrEnum):
    Q35 = "q35"
    MICROVM = "microvm"


class RestartPolicy(StrEnum):
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class DiskSpec(Frozen):
    """A new volume of `size` in `pool` (deleted with the VM unless `keep`), or an existing `volume`."""

    pool: PoolRef | None = None
    size: Size | None = Field(default=None, gt=0, le=SIZE_MAX)
    volume: VolumeRef | None = None
    keep: bool = False


class VnicSpec(Frozen):
    """MAC and address are chosen and written here when the VM is created, if not given."""

    network: NetworkRef
    mac: str | None = Field(default=None, pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
    ip: Address | None = None


SshKey = Annotated[str, StringConstraints(max_length=16 << 10)]


class CloudInit(Frozen):
    ssh_keys: list[SshKey] = Field(default_factory=list, max_length=64)
    user_data: str = Field(default="", max_length=USER_DATA_MAX)


class VmSpec(Frozen):
    image: ImageRef | None = None
    machine: MachineKind = MachineKind.Q35
    machine_type: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")
    """The versioned type, pinned when the VM is created."""
    cpus: int = Field(default=1, ge=1, le=256)
    max_cpus: int | None = Field(default=None, ge=1, le=256)
    """The room for CPUs that are plugged in while it runs: chosen when it starts, if not given or less than `cpus`.

    It stays as it is after that, since both ends of a move must have the same."""
    memory: Size = Field(default=512 << 20, ge=MEMORY_MIN, le=MEMORY_MAX)
    disks: list[DiskSpec] = Field(default_factory=list, max_length=DEVICES_MAX)
    vnics: list[VnicSpec] = Field(default_factory=list, max_length=DEVICES_MAX)
    cloud_init: CloudInit = CloudInit()
    cmdline: str = Field(default="", max_length=CMDLINE_MAX)
    """Appended to a kernel image's own command line."""
    host: HostRef | None = None
    """Only this host will do; none: placement chooses."""
    running: bool = True
    restart: RestartPolicy = RestartPolicy.ON_FAILURE
    autostart: bool = True
    """Start again when the host has rebooted."""
    autostart_order: int = Field(default=0, ge=-ORDER_MAX, le=ORDER_MAX)
    template: bool = False

    @property
    def volumes(self) -> list[VolumeId]:
        """Those of its disks, in their order: once the VM is created, each has one."""
        return [disk.volume for disk in self.disks if disk.volume is not None]


HOST_SILENT = "host-silent"
"""Condition of a VM whose host does not answer: its state is what the host last said."""


class VmState(StrEnum):
    """See core/lifecycle.py for what leads from one to the other."""

    DEFINED = "defined"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    MIGRATING = "migrating"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"
    UNKNOWN = "unknown"
    """Its host does not answer; this never means that the VM is dead."""


class MigrationSummary(Frozen):
    """Of the VM's last migration. A figure is none where it is not known: who measured it was gone before telling."""

    mode: str
    source: HostName
    destination: HostName
    total_s: float | None = None
    downtime_ms: float | None = None
    rounds: int | None = None
    bytes_sent: int | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    """Phase name to seconds."""
    resumed: datetime | None = None
    """When the VM ran on the destination, by the source's clock."""


class VmStatus(Frozen):
    state: VmState = VmState.DEFINED
    host: HostName | None = None
    epoch: int = 0
    reason: str = ""
    since: datetime | None = None
    placement: str = ""
    """Why the controller picked this host."""
    addresses: list[str] = Field(default_factory=list)
    pid: int | None = None
    accel: str | None = None
    running_generation: int = 0
    """The generation of the spec that QEMU was started with or brought to."""
    guest_agent: bool = False
    conditions: list[Condition] = Field(default_factory=list)
    restarts: int = 0
    last_migration: MigrationSummary | None = None


class Vm(Resource[VmSpec, VmStatus]):
    kind: str = "vm"
    id: VmId


class VmCreate(Create[VmSpec]):
    pass


class VmEdit(Frozen):
    """Only what is given changes. `rename` is a new name."""

    rename: NewName | None = None
    labels: Labels | None = None
    description: Description | None = None
    cpus: int | None = Field(default=None, ge=1, le=256)
    memory: Size | None = Field(default=None, ge=MEMORY_MIN, le=MEMORY_MAX)
    disks: list[DiskSpec] | None = Field(default=None, max_length=DEVICES_MAX)
    vnics: list[VnicSpec] | None = Field(default=None, max_length=DEVICES_MAX)
    cmdline: str | None = Field(default=None, max_length=CMDLINE_MAX)
    cloud_init: CloudInit | None = None
    restart: RestartPolicy | None = None
    autostart: bool | None = None
    autostart_order: int | None = Field(default=None, ge=-ORDER_MAX, le=ORDER_MAX)
    template: bool | None = None


class VmStart(Frozen):
    """`host` none: where it was before, or where placement puts it."""

    host: HostRef | None = None


class VmMigrate(Frozen):
    """`to` none: placement chooses another host."""

    to: HostRef | None = None


class VmStop(Frozen):
    """ACPI first; after `timeout` seconds by force. `force` skips the asking."""

    force: bool = False
    timeout: float = Field(default=60.0, ge=0, le=STOP_MAX)


class VmClone(Frozen):
    name: NewName


class VmReport(Frozen):
    """What the VM agent on a host says of one VM: the VM's own subject, wherever it runs."""

    vm: VmId
    host: HostName
    epoch: int
    state: VmState
    reason: str = ""
    since: datetime
    pid: int | None = None
    accel: str | None = None
    generation: int = 0
    guest_agent: bool = False
    restarts: int = 0
    starts: int = 0
    """Of the agent that made it, as in its `Incarnation`."""
    sequence: int = 0
    """Grows with each report of one agent. A report never overwrites one of a higher (epoch, starts, sequence)."""
