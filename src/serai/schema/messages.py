"""The bus: commands with their bodies and results, and reports. Where they go is said in subjects.py.

A command is asked with `Bus.request` on the subject of a host, or of a VM on its host. Its id makes it idempotent:
asked again (after a lost reply, a restarted agent, a restarted nats-server) it is carried out once and answered alike.
A command that takes longer than `HOLD` seconds is answered `running`; the asker asks again with the same id until it is
`done` or `failed`. A command whose generation is older than the newest that the receiver has carried out for the same
`key` is refused.
"""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr

from serai.schema.attach import Admission, Launch
from serai.schema.errors import ErrorInfo
from serai.schema.host import HostFacts
from serai.schema.image import ImageManifest, ImageSpec
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.network import NetworkSpec
from serai.schema.resource import Frozen, Id, Name
from serai.schema.ticket import Ticket
from serai.schema.vm import RestartPolicy, VmReport
from serai.schema.volume import ExportKind, PoolDriverName, PoolStatus

HOLD = 10.0
"""Seconds for which a receiver keeps a request open before it answers `running`."""


def dump(model: BaseModel) -> bytes:
    """JSON for the bus. Secrets are written out: the bus is TLS with per-identity permissions, and never logged."""
    return json.dumps(_plain(model.model_dump(mode="python")), separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


class Command(Frozen):
    """`key` orders commands (`vm/<id>`, `volume/<id>`); `job` is the job it belongs to, for logs."""

    id: Id
    kind: str
    key: str
    generation: int = 0
    job: str | None = None
    body: dict[str, Any] = Field(default_factory=dict)


class Reply(Frozen):
    state: Literal["done", "failed", "running"]
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None


class Progress(Frozen):
    """On `Subjects.progress(host, command id)`: best effort, lost without harm. `fraction` 0 to 1 or none.

    `waits_for`: whom or what the host waits for, in words; "" while it goes on. It is said again as long as it is so.
    """

    command: Id
    phase: str
    fraction: float | None = None
    waits_for: str = ""


class Hello(Frozen):
    """An agent's word at start and after each reconnect; the controller answers `Welcome`."""

    host: Name
    facts: HostFacts


class Welcome(Frozen):
    host_id: Id
    time: datetime


class HostReport(Frozen):
    """Every few seconds and after each reconnect: all VMs that the host has, and its pools."""

    host: Name
    time: datetime
    vms: list[VmReport] = Field(default_factory=list)
    silent: list[Id] = Field(default_factory=list)
    """VMs that a new agent has found no word of: their QEMU is there, and has not answered it yet."""
    leases: list[LeaseRecord] = Field(default_factory=list)
    """The last record of each VM and epoch that is not yet confirmed by the controller."""
    pools: dict[str, PoolStatus] = Field(default_factory=dict)
    bridges: list[str] | None = None
    """Names, sorted; none: it could not be found out."""


class Empty(Frozen):
    pass


# --- VM commands, on the host's subject -------------------------------------------------------------------------------


class VmStart(Frozen):
    """Start afresh under `epoch`. Answered with a report once its vCPUs run."""

    launch: Launch
    epoch: int
    restart: RestartPolicy
    autostart: bool = True
    autostart_order: int = 0


class VmPrepare(Frozen):
    """Destination of a migration: tap (closed), disks, seed, QEMU `-incoming defer -S`, journal `offered`."""

    launch: Launch
    epoch: int
    offer_id: str
    source: Name
    source_identity: str
    capabilities: dict[str, bool]
    restart: RestartPolicy
    autostart: bool = True
    autostart_order: int = 0


class VmPrepared(Frozen):
    address: str
    port: int
    tls_hostname: str


class VerdictAsk(Frozen):
    """On `Subjects.verdict(host, source)`: has this offer been committed? The answer may take until it is decided."""

    vm: Id
    epoch: int
    offer_id: str


class VmAbandon(Frozen):
    """Destination: turn the offer down for ever, unless it is committed already. Answered with the verdict."""

    vm: Id
    epoch: int
    offer_id: str
    reason: str


class Verdict(Frozen):
    claim: Claim
    reason: str = ""
    runs_s: float = 0.0
    """For how long the VM had been running there when this was said; 0: not known."""


class VmRelease(Frozen):
    """The host gives up `epoch` and all lower: QEMU ended, tap gone, journal `released`, its folders too."""

    vm: Id
    epoch: int
    reason: str = ""


class VmMigrateStart(Frozen):
    """Source of a migration. Answered when it has ended, either way."""

    vm: Id
    epoch: int
    offer_id: str
    destination: Name
    address: str
    port: int
    tls_hostname: str
    capabilities: dict[str, bool]
    downtime_limit_ms: int = 30


class VmMigrated(Frozen):
    """`phases` name → seconds on the source's clock. `committed=False`: the VM goes on at the source, see `reason`.

    Figures that nobody could measure are none.
    """

    committed: bool
    reason: str = ""
    total_s: float | None = None
    downtime_ms: float | None = None
    rounds: int | None = None
    bytes_sent: int | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    resumed: datetime | None = None
    """When the VM ran on the destination, by the source's clock."""


class VmMigrateCancel(Frozen):
    vm: Id
    offer_id: str
    reason: str = "cancelled on request"


class VmMigrateCancelled(Frozen):
    """`too_late`: the switch had begun; its own outcome stands."""

    too_late: bool


# --- VM commands, on the VM's own subject -----------------------------------------------------------------------------


class VmStopCommand(Frozen):
    vm: Id
    force: bool = False
    timeout: float = 60.0


class VmSignal(Frozen):
    """`vm.reset`, `vm.pause`, `vm.resume`."""

    vm: Id


class VmConfigure(Frozen):
    """Bring a running VM to `launch` as far as can be done live; the rest is answered as pending."""

    launch: Launch
    restart: RestartPolicy
    autostart: bool = True
    autostart_order: int = 0


class VmConfigured(Frozen):
    """`undo` says, for some of what is pending, which options of `serai vm edit` take it back."""

    applied: list[str] = Field(default_factory=list)
    pending: list[str] = Field(default_factory=list)
    undo: dict[str, str] = Field(default_factory=dict)


class GuestExec(Frozen):
    """Ask the guest agent one of its own commands (`guest-ping`, `guest-info`, `guest-network-get-interfaces`)."""

    vm: Id
    execute: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class GuestAnswer(Frozen):
    answer: Any = None


# --- pools, volumes, images, networks, on the host's subject ----------------------------------------------------------


class PoolOpen(Frozen):
    pool: Id
    driver: PoolDriverName
    path: str
    export: ExportKind


class PoolClose(Frozen):
    """Forget the pool. Its volumes must be gone; nothing is deleted that Serai did not make."""

    pool: Id


class VolumeMake(Frozen):
    """With `image`: its content first (`clone_of` likewise for a volume of the same pool), then grown to `size`."""

    pool: Id
    volume: Id
    size: int
    image: Id | None = None
    clone_of: Id | None = None


class VolumeDrop(Frozen):
    pool: Id
    volume: Id


class VolumeGrow(Frozen):
    pool: Id
    volume: Id
    size: int


class VolumeLook(Frozen):
    """How large a volume is; answered with `VolumeSeen`."""

    pool: Id
    volume: Id


class VolumeSeen(Frozen):
    """In bytes."""

    size: int


class VolumeAdmit(Frozen):
    """Export the volume if it is not yet, and let `admission` in."""

    pool: Id
    volume: Id
    admission: Admission


class VolumeAdmitted(Frozen):
    portal: str
    target: str
    lun: int


class VolumeRefuse(Frozen):
    """Fence: sessions of `initiator` are closed and it is refused from now on."""

    pool: Id
    volume: Id
    initiator: str


class ImageMake(Frozen):
    image: Id
    name: Name
    spec: ImageSpec


class ImageFetch(Frozen):
    """Take a copy from another host over the data channel."""

    image: Id
    manifest: ImageManifest
    address: str
    port: int
    server: str
    ticket: str


class ImageDrop(Frozen):
    image: Id


class NetworkEnsure(Frozen):
    network: Id
    spec: NetworkSpec


class UplinkTakeCommand(Frozen):
    uplink: str
    bridge: str
    confirm_within: float


class UplinkConfirm(Frozen):
    token: str


class UplinkTaken(Frozen):
    token: str
    deadline: datetime


class TicketRedeem(Frozen):
    ticket: str
    holder: str
    server: str


class TicketRedeemed(Frozen):
    ticket: Ticket


class CommandType(BaseModel):
    """What a command kind takes and gives, and who answers it."""

    body: type[BaseModel]
    result: type[BaseModel]
    to: Literal["host", "vm"]


class Kind(StrEnum):
    VM_START = "vm.start"
    VM_PREPARE = "vm.prepare"
    VM_ABANDON = "vm.abandon"
    VM_RELEASE = "vm.release"
    VM_STOP = "vm.stop"
    VM_RESET = "vm.reset"
    VM_PAUSE = "vm.pause"
    VM_RESUME = "vm.resume"
    VM_CONFIGURE = "vm.configure"
    VM_MIGRATE = "vm.migrate"
    VM_MIGRATE_CANCEL = "vm.migrate.cancel"
    VM_GUEST = "vm.guest"
    POOL_OPEN = "pool.open"
    POOL_CLOSE = "pool.close"
    VOLUME_MAKE = "volume.make"
    VOLUME_DROP = "volume.drop"
    VOLUME_GROW = "volume.grow"
    VOLUME_LOOK = "volume.look"
    VOLUME_ADMIT = "volume.admit"
    VOLUME_REFUSE = "volume.refuse"
    IMAGE_MAKE = "image.make"
    IMAGE_FETCH = "image.fetch"
    IMAGE_DROP = "image.drop"
    NETWORK_ENSURE = "network.ensure"
    UPLINK_TAKE = "uplink.take"
    UPLINK_CONFIRM = "uplink.confirm"


COMMANDS: dict[Kind, CommandType] = {
    Kind.VM_START: CommandType(body=VmStart, result=VmReport, to="host"),
    Kind.VM_PREPARE: CommandType(body=VmPrepare, result=VmPrepared, to="host"),
    Kind.VM_ABANDON: CommandType(body=VmAbandon, result=Verdict, to="host"),
    Kind.VM_RELEASE: CommandType(body=VmRelease, result=Empty, to="host"),
    Kind.VM_STOP: CommandType(body=VmStopCommand, result=VmReport, to="vm"),
    Kind.VM_RESET: CommandType(body=VmSignal, result=VmReport, to="vm"),
    Kind.VM_PAUSE: CommandType(body=VmSignal, result=VmReport, to="vm"),
    Kind.VM_RESUME: CommandType(body=VmSignal, result=VmReport, to="vm"),
    Kind.VM_CONFIGURE: CommandType(body=VmConfigure, result=VmConfigured, to="vm"),
    Kind.VM_MIGRATE: CommandType(body=VmMigrateStart, result=VmMigrated, to="host"),
    Kind.VM_MIGRATE_CANCEL: CommandType(body=VmMigrateCancel, result=VmMigrateCancelled, to="host"),
    Kind.VM_GUEST: CommandType(body=GuestExec, result=GuestAnswer, to="vm"),
    Kind.POOL_OPEN: CommandType(body=PoolOpen, result=PoolStatus, to="host"),
    Kind.POOL_CLOSE: CommandType(body=PoolClose, result=Empty, to="host"),
    Kind.VOLUME_MAKE: CommandType(body=VolumeMake, result=Empty, to="host"),
    Kind.VOLUME_DROP: CommandType(body=VolumeDrop, result=Empty, to="host"),
    Kind.VOLUME_GROW: CommandType(body=VolumeGrow, result=Empty, to="host"),
    Kind.VOLUME_LOOK: CommandType(body=VolumeLook, result=VolumeSeen, to="host"),
    Kind.VOLUME_ADMIT: CommandType(body=VolumeAdmit, result=VolumeAdmitted, to="host"),
    Kind.VOLUME_REFUSE: CommandType(body=VolumeRefuse, result=Empty, to="host"),
    Kind.IMAGE_MAKE: CommandType(body=ImageMake, result=ImageManifest, to="host"),
    Kind.IMAGE_FETCH: CommandType(body=ImageFetch, result=Empty, to="host"),
    Kind.IMAGE_DROP: CommandType(body=ImageDrop, result=Empty, to="host"),
    Kind.NETWORK_ENSURE: CommandType(body=NetworkEnsure, result=Empty, to="host"),
    Kind.UPLINK_TAKE: CommandType(body=UplinkTakeCommand, result=UplinkTaken, to="host"),
    Kind.UPLINK_CONFIRM: CommandType(body=UplinkConfirm, result=Empty, to="host"),
}
