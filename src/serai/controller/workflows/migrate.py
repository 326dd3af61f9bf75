"""`vm.migrate`: a running VM moves to another host.

Steps: offer the lease, prepare the destination, move, settle. What speaks against the move is looked for in the
transaction that offers; the offer is durable before either end hears of it; the commit is the destination's own
(`host/migration`). Until then every failure ends with the VM on the source: undoing asks the destination to abandon,
and only its word withdraws the offer. After it, `settle` goes on until the database says what is true. A controller
that dies in between does either, by what the journals say.
"""

from __future__ import annotations

import asyncio
import contextlib

from pydantic import Field

from serai.controller.jobs.workflow import JobContext, Step, Workflow
from serai.controller.workflows.common import Office, facts_of, make_launch, refuse, with_boot
from serai.controller.workflows.shelf import ForPlacing
from serai.core import launch as plan
from serai.core.migration import agreed_capabilities, check_nothing_pending
from serai.core.placement import choose_destination
from serai.lib.pki import qemu_identity
from serai.schema.commands.migration import (
    MIGRATION_ABANDON,
    MIGRATION_CANCEL,
    MIGRATION_PREPARE,
    MIGRATION_START,
    AbandonMigration,
    CancelMigration,
    MigrationEndpoint,
    MigrationOutcome,
    PrepareMigration,
    StartMigration,
    Verdict,
)
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.errors import CancelledByUserError, ConflictError, HostError, InterruptedByRestartError
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Claim
from serai.schema.resource import Frozen
from serai.schema.vm import MigrationSummary, VmState

DOWNTIME_LIMIT_MS = 20
"""QEMU switches when it expects less than this; shorter makes more rounds, longer a longer blackout."""


class MigrateParams(Frozen):
    """`to` none: placement chooses another host when the job's turn has come."""

    vm: VmId
    to: HostName | None = None


class Offer(Frozen):
    """What the lease's next epoch was offered for. The job's id names the offer."""

    epoch: int
    source: HostName
    source_epoch: int
    to: HostName
    why: str = "as was offered"
    capabilities: dict[str, bool] = Field(default_factory=dict)


class MigrateState(Frozen):
    offer: Offer | None = None
    prepared: MigrationEndpoint | None = None
    outcome: MigrationOutcome | None = None

    @property
    def offered(self) -> Offer:
        """The offer, in the steps after it. Raises ValueError if there is none."""
        if self.offer is None:
            raise ValueError("nothing was offered")
        return self.offer


Context = JobContext[MigrateParams, MigrateState]


async def _offer(office: Office, ctx: Context) -> None:
    """Everything that can be known beforehand is known before anything is prepared."""
    made: list[Offer] = []

    def decide(found: ForPlacing) -> HostName:
        lease = found.lease
        # After a crash the step comes again: an offer that stands is not made to another host.
        wanted = lease.offered_to if lease is not None and lease.offer_id == ctx.id else ctx.params.to
        made.append(_decide(found, wanted))
        return made[0].to

    lease = await office.shelf.offer(ctx.params.vm, ctx.id, decide)
    offer = made[0].model_copy(update={"epoch": lease.highest})
    ctx.remember(offer=offer)
    ctx.progress(None, f"to {offer.to}: {offer.why}")


def _decide(found: ForPlacing, wanted: HostName | None) -> Offer:
    """Where to, and what both ends are told; the epoch is that of the lease. Raises what speaks against the move."""
    vm, lease = found.vm, found.lease
    if lease is None or vm.status.state is not VmState.RUNNING:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}: only a running VM moves alive",
            field="state",
            value=vm.status.state,
            remedy="Start it first; a stopped VM starts wherever placement puts it.",
        )
    check_nothing_pending(vm)
    choice = choose_destination(vm, found.hosts, wanted, found.ties)
    by_name = {host.name: host for host in found.hosts}
    source, destination = facts_of(by_name[lease.host]), facts_of(by_name[choice.host])
    plan.check_machine(vm.spec.machine_type or "", destination, source, runs_on=vm.status.accel)
    return Offer(
        epoch=lease.highest,
        source=lease.host,
        source_epoch=lease.epoch,
        to=choice.host,
        why=choice.why,
        capabilities=agreed_capabilities(source, destination),
    )


async def _prepare(office: Office, ctx: Context) -> None:
    offer = ctx.state.offered
    parts = await office.shelf.for_launch(ctx.params.vm, offer.to)
    vm = parts.vm
    launch = await make_launch(office, ctx, parts, offer.epoch)
    body = PrepareMigration(
        launch=launch,
        epoch=offer.epoch,
        offer_id=ctx.id,
        source=offer.source,
        source_identity=qemu_identity(offer.source),
        capabilities=offer.capabilities,
        restart=vm.spec.restart,
        autostart=vm.spec.autostart,
        autostart_order=vm.spec.autostart_order,
    )
    prepared = await with_boot(office, ctx, parts, lambda: ctx.send(MIGRATION_PREPARE, offer.to, body))
    ctx.remember(prepared=prepared)


async def _move(office: Office, ctx: Context) -> None:
    """Start the source, watch for a cancel, and take the outcome: committed, or the VM stayed."""
    offer, prepared = ctx.state.offered, ctx.state.prepared
    assert prepared is not None, "the step before this one remembers it"
    body = StartMigration(
        vm=ctx.params.vm,
        epoch=offer.epoch,
        offer_id=ctx.id,
        destination=offer.to,
        address=prepared.address,
        port=prepared.port,
        tls_hostname=prepared.tls_hostname,
        capabilities=offer.capabilities,
        downtime_limit_ms=DOWNTIME_LIMIT_MS,
    )
    watcher = asyncio.create_task(_cancel_on_request(ctx))
    # The engine's own cancel would leave the outcome open: the source's word on it is always waited for.
    ctx.cancellable = False
    try:
        outcome = await ctx.send(MIGRATION_START, offer.source, body)
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
    if not outcome.committed:
        kind = CancelledByUserError if ctx.cancelled.is_set() else HostError
        raise kind(f"the VM stayed on {offer.source}: {outcome.reason}")
    ctx.remember(outcome=outcome)


async def _cancel_on_request(ctx: Context) -> None:
    await ctx.cancelled.wait()
    body = CancelMigration(vm=ctx.params.vm, offer_id=ctx.id)
    answer = await ctx.send(MIGRATION_CANCEL, ctx.state.offered.source, body)
    if answer.too_late:
        ctx.progress(None, "too late to cancel: the switch has begun")
        return
    # The source's QEMU may be waiting for a partner that says nothing: it hears of its end when that one hangs up.
    await _ask_to_abandon(ctx, body.reason)


async def _moved(office: Office, ctx: Context) -> bool:
    """After a crash of the controller in mid-move: the destination's journal says what became of it.

    Asking to abandon gets the verdict: either it is committed already, or it never will be.
    """
    verdict = await _ask_to_abandon(ctx, "the controller was restarted in mid-migration")
    if verdict.claim is not Claim.COMMITTED:
        offer = ctx.state.offered
        raise InterruptedByRestartError(
            f"the controller was restarted in mid-migration: the VM stayed on {offer.source}",
            field="to",
            value=offer.to,
            remedy=f"Move it again: serai vm migrate {ctx.target.partition('/')[2]} --to {offer.to}",
        )
    return True


async def _ask_to_abandon(ctx: Context, reason: str) -> Verdict:
    offer = ctx.state.offered
    body = AbandonMigration(vm=ctx.params.vm, epoch=offer.epoch, offer_id=ctx.id, reason=reason)
    return await ctx.send(MIGRATION_ABANDON, offer.to, body)


async def _abandon(office: Office, ctx: Context) -> None:
    """Undo of the offer: withdrawn only once the destination has turned it down for ever."""
    vm_id = ctx.params.vm
    if ctx.state.offer is None:
        # Refused, or the crash came between the offer's commit and the record of it: the lease itself knows.
        lease = await office.shelf.lease(vm_id)
        if lease.offer_id != ctx.id or lease.offered_to is None:
            return
        ctx.remember(offer=Offer(epoch=lease.highest, source=lease.host, source_epoch=lease.epoch, to=lease.offered_to))
    verdict = await _ask_to_abandon(ctx, "the move was given up")
    if verdict.claim is Claim.COMMITTED:
        # It cannot be undone: it has happened. Say what is true.
        await _settle(office, ctx)
        return
    await office.shelf.withdraw(vm_id, ctx.id)
    vm = await office.shelf.vm(vm_id)
    await refuse(office, ctx, vm, ctx.state.offered.epoch)
    if vm.status.state is VmState.MIGRATING:
        await office.shelf.set_vm_status(vm_id, state=VmState.RUNNING, reason="stayed: the move was given up")


async def _settle(office: Office, ctx: Context) -> None:
    """The VM is the destination's: database, fence of the old epoch, source cleared away."""
    vm_id, offer = ctx.params.vm, ctx.state.offered
    await office.shelf.commit(vm_id, offer.epoch, offer.to)
    outcome = ctx.state.outcome or MigrationOutcome(committed=True)
    summary = MigrationSummary(
        mode="precopy",
        source=offer.source,
        destination=offer.to,
        total_s=outcome.total_s,
        downtime_ms=outcome.downtime_ms,
        rounds=outcome.rounds,
        bytes_sent=outcome.bytes_sent,
        phases=outcome.phases,
        resumed=outcome.resumed,
    )
    await office.shelf.arrived(vm_id, offer.to, offer.epoch, summary, offer.why)
    vm = await office.shelf.vm(vm_id)
    await refuse(office, ctx, vm, offer.source_epoch)
    body = ReleaseVm(vm=vm_id, epoch=offer.source_epoch, reason=f"moved to {offer.to}")
    await ctx.send(VM_RELEASE, offer.source, body, patience=float("inf"))
    ctx.result = {**summary.model_dump(mode="json"), "why": offer.why}


MIGRATE_VM = Workflow(
    "vm.migrate",
    MigrateParams,
    MigrateState,
    (
        Step("offer", _offer, undo=_abandon, repeatable=True),
        Step("prepare", _prepare),
        Step("move", _move, resume=_moved, point_of_no_return=True),
        Step("settle", _settle, repeatable=True, cancellable=False),
    ),
)
