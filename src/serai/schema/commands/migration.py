"""Commands of a live migration, for the hosts at its two ends, and the verdict that the source asks of the destination.

All name the migration by its `offer_id` and the epoch that the destination gets.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from serai.schema.commands.base import Command
from serai.schema.commands.vm import LaunchBody
from serai.schema.ids import HostName, Id, VmId
from serai.schema.lease import Claim
from serai.schema.resource import Frozen


class PrepareMigration(LaunchBody):
    """Destination: tap (closed), disks, seed, QEMU `-incoming defer -S`, journal `offered`."""

    epoch: int
    offer_id: str
    source: HostName
    source_identity: str
    capabilities: dict[str, bool]


class MigrationEndpoint(Frozen):
    """Where the destination's QEMU listens. `journal`: the one that the offer is recorded in, see `Incarnation`."""

    address: str
    port: int
    tls_hostname: str
    journal: Id


class StartMigration(Frozen):
    """Source: send the VM. Answered when the migration has ended, either way.

    `journal`: the destination's, as in `MigrationEndpoint`.
    """

    vm: VmId
    epoch: int
    offer_id: str
    destination: HostName
    journal: Id
    address: str
    port: int
    tls_hostname: str
    capabilities: dict[str, bool]
    downtime_limit_ms: int = 30


class MigrationOutcome(Frozen):
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


class CancelMigration(Frozen):
    """Source: stay, unless the switch has begun."""

    vm: VmId
    offer_id: str
    reason: str = "cancelled on request"


class CancelResult(Frozen):
    """`too_late`: the switch had begun; its own outcome stands."""

    too_late: bool


class WithdrawMigration(Frozen):
    """Source: promise durably that the last state of this offer is never sent."""

    vm: VmId
    epoch: int
    offer_id: str
    reason: str


class Withdrawal(Frozen):
    """`never_sent`: the promise is given. Otherwise the switch has begun, and the destination's journal decides."""

    never_sent: bool


class VerdictAsk(Frozen):
    """On `Subjects.verdict(host, source)`: has this offer been committed? The answer may take until it is decided.

    `journal`: the destination's when the offer was made to it; with another one it does not decide. None: no host was
    asked to prepare it.
    """

    vm: VmId
    epoch: int
    offer_id: str
    journal: Id | None = None


class AbandonMigration(VerdictAsk):
    """Destination: turn the offer down for ever, unless it is committed already. Answered with the verdict."""

    reason: str


class Verdict(Frozen):
    claim: Claim
    reason: str = ""
    runs_s: float = 0.0
    """For how long the VM had been running there when this was said; 0: not known."""


MIGRATION_PREPARE = Command(
    "migration.prepare", PrepareMigration, MigrationEndpoint, lambda body: f"vm/{body.launch.vm}"
)
MIGRATION_START = Command(
    "migration.start", StartMigration, MigrationOutcome, lambda body: f"vm/{body.vm}", patience=float("inf")
)
MIGRATION_CANCEL = Command("migration.cancel", CancelMigration, CancelResult, lambda body: f"vm/{body.vm}")
MIGRATION_WITHDRAW = Command("migration.withdraw", WithdrawMigration, Withdrawal, lambda body: f"vm/{body.vm}")
MIGRATION_ABANDON = Command(
    "migration.abandon", AbandonMigration, Verdict, lambda body: f"vm/{body.vm}", patience=float("inf")
)
