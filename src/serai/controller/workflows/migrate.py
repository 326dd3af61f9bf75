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
import logging
from enum import Enum, auto

from pydantic import Field

from serai.controller.jobs.workflow import JobContext, Step, Workflow
from serai.controller.services import capacity, vms
from serai.controller.services.checks import need_online
from serai.controller.store import Transaction
from serai.controller.workflows.common import VmParams, refuse_or_leave, send_or_leave
from serai.controller.workflows.launches import launch_body, with_boot
from serai.controller.workflows.start import choose_host, start_vm
from serai.core import launch as plan
from serai.core.lease import is_over
from serai.core.migration import agreed_capabilities, check_nothing_pending
from serai.core.observed import Event
from serai.core.placement import Ties, choose_destination
from serai.lib.pki import qemu_identity
from serai.schema.commands.migration import (
    MIGRATION_ABANDON,
    MIGRATION_CANCEL,
    MIGRATION_PREPARE,
    MIGRATION_START,
    MIGRATION_WITHDRAW,
    AbandonMigration,
    CancelMigration,
    MigrationEndpoint,
    MigrationOutcome,
    PrepareMigration,
    StartMigration,
    Verdict,
    WithdrawMigration,
)
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.errors import (
    CancelledByUserError,
    ConflictError,
    HostError,
    InterruptedByRestartError,
    SeraiError,
    StaleError,
    UnavailableError,
)
from serai.schema.host import Host, HostState
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Claim, Lease
from serai.schema.resource import Frozen
from serai.schema.vm import MigrationSummary, RestartPolicy, Vm, VmState

DOWNTIME_LIMIT_MS = 20
"""QEMU switches when it expects less than this; shorter makes more rounds, longer a longer blackout."""
CLEARING = 2.0
"""Seconds that a destination gets to turn an offer down which the source has given up already."""
REPEAT = 3.0
"""Seconds after which a cancel, or a question that nobody answered, is repeated."""
PATIENCE = 10.0
"""Seconds of silence of one end after which the other one's word, or a fence, is looked for."""
GRACE = 5.0
"""Seconds that the source gets to say how it went, once the destination has decided."""

log = logging.getLogger(__name__)


class MigrateParams(VmParams):
    """`to` none: placement chooses another host when the job's turn has come."""

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


async def _offer(ctx: Context) -> None:
    """Everything that can be known beforehand is known before anything is prepared."""
    vm_id = ctx.params.vm
    await ctx.await_reports(vm_id)
    async with ctx.store.transaction() as tx:
        # What it is decided by cannot change until the offer stands.
        vm, lease = await tx.vms.get(vm_id), await tx.leases.get(vm_id)
        hosts, ties = await capacity.for_placing(tx, vm, starts=vm.spec.running)
        # After a crash the step comes again: an offer that stands is not made to another host.
        wanted = lease.offered_to if lease is not None and lease.offer_id == ctx.id else ctx.params.to
        offer = _decide(vm, lease, hosts, ties, wanted)
        offered = await ctx.rights.offer(tx, vm_id, offer.to, ctx.id)
    ctx.remember(offer=offer.model_copy(update={"epoch": offered.highest}))
    ctx.progress(None, f"to {offer.to}: {offer.why}")


def _decide(vm: Vm, lease: Lease | None, hosts: list[Host], ties: Ties, wanted: HostName | None) -> Offer:
    """Where to, and what both ends are told; the epoch is that of the lease. Raises what speaks against the move."""
    if lease is None or vm.status.state is not VmState.RUNNING:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}: only a running VM moves alive",
            field="state",
            value=vm.status.state,
            remedy="Start it first; a stopped VM starts wherever placement puts it.",
        )
    check_nothing_pending(vm)
    choice = choose_destination(vm, hosts, wanted, ties)
    by_name = {host.name: host for host in hosts}
    source, destination = need_online(by_name[lease.host]), need_online(by_name[choice.host])
    plan.check_machine(vm.spec.machine_type or "", destination, source, runs_on=vm.status.accel)
    return Offer(
        epoch=lease.highest,
        source=lease.host,
        source_epoch=lease.epoch,
        to=choice.host,
        why=choice.why,
        capabilities=agreed_capabilities(source, destination),
    )


async def _prepare(ctx: Context) -> None:
    offer = ctx.state.offered
    async with ctx.store.read() as view:
        host, parts = await view.hosts.need(offer.to), await vms.parts(view, ctx.params.vm)
    body = PrepareMigration(
        **dict(await launch_body(ctx, parts, host, offer.epoch)),
        epoch=offer.epoch,
        offer_id=ctx.id,
        source=offer.source,
        source_identity=qemu_identity(offer.source),
        capabilities=offer.capabilities,
    )
    prepared = await with_boot(ctx, parts, offer.to, lambda: ctx.send(MIGRATION_PREPARE, offer.to, body))
    ctx.remember(prepared=prepared)


async def _move(ctx: Context) -> None:
    """Start the source and take the outcome: its own word, or that of the destination if the source says nothing."""
    offer, prepared = ctx.state.offered, ctx.state.prepared
    assert prepared is not None, "the step before this one remembers it"
    body = StartMigration(
        vm=ctx.params.vm,
        epoch=offer.epoch,
        offer_id=ctx.id,
        destination=offer.to,
        **dict(prepared),
        capabilities=offer.capabilities,
        downtime_limit_ms=DOWNTIME_LIMIT_MS,
    )
    # The engine's own cancel would leave the outcome open.
    ctx.cancellable = False
    source = asyncio.ensure_future(ctx.send(MIGRATION_START, offer.source, body))
    decided = asyncio.ensure_future(_decided_without_source(ctx))
    try:
        await asyncio.wait({source, decided}, return_when=asyncio.FIRST_COMPLETED)
        if not source.done():
            # The source has the figures of the move, and is told last.
            await asyncio.wait({source}, timeout=GRACE)
        outcome = source.result() if source.done() else await decided
    finally:
        source.cancel()
        decided.cancel()
        await asyncio.gather(source, decided, return_exceptions=True)
    if not outcome.committed:
        kind = CancelledByUserError if ctx.cancelled.is_set() else HostError
        raise kind(f"the VM stayed on {offer.source}: {outcome.reason}")
    ctx.remember(outcome=outcome)


async def _decided_without_source(ctx: Context) -> MigrationOutcome:
    """What the lease says once the destination has reported that it runs the VM; and a cancel, repeated until then."""
    offer = ctx.state.offered
    while True:
        newest = ctx.store.bell.newest
        async with ctx.store.read() as view:
            lease = await view.leases.need(ctx.params.vm)
        if lease.epoch >= offer.epoch:
            return MigrationOutcome(committed=True)
        if ctx.cancelled.is_set() and (claim := await _cancel(ctx)) is not None:
            return MigrationOutcome(committed=claim is Claim.COMMITTED, reason="cancelled on request")
        await ctx.until(ctx.store.bell.beyond(newest), timeout=REPEAT)


async def _cancel(ctx: Context) -> Claim | None:
    """Ask both ends to stop; returns the destination's word if it has decided."""
    offer = ctx.state.offered
    body = CancelMigration(vm=ctx.params.vm, offer_id=ctx.id)
    with contextlib.suppress(UnavailableError):
        answer = await ctx.send(MIGRATION_CANCEL, offer.source, body, patience=REPEAT)
        if answer.too_late:
            ctx.progress(None, "too late to cancel: the switch has begun")
            return None
    # The source's QEMU may be waiting for a partner that says nothing: it hears of its end when that one hangs up.
    with contextlib.suppress(UnavailableError):
        claim = (await _ask_to_abandon(ctx, body.reason, patience=REPEAT)).claim
        return None if claim is Claim.OFFERED else claim
    return None


async def _moved(ctx: Context) -> bool:
    """After a crash of the controller in mid-move: the journals say what became of it.

    Asking for the end of the move gets the verdict: either it is committed already, or it never will be.
    """
    if await _verdict(ctx, "the controller was restarted in mid-migration") is not Verdicts.COMMITTED:
        offer = ctx.state.offered
        raise InterruptedByRestartError(
            f"the controller was restarted in mid-migration: the VM stayed on {offer.source}",
            field="to",
            value=offer.to,
            remedy=f"Move it again: serai vm migrate {ctx.target.partition('/')[2]} --to {offer.to}",
        )
    return True


class Verdicts(Enum):
    """How a move ends. `STAYED`: by the destination's word; `PROMISED`: by the source's; `LOST`: nobody can say."""

    COMMITTED = auto()
    STAYED = auto()
    PROMISED = auto()
    LOST = auto()


async def _verdict(ctx: Context, reason: str) -> Verdicts:
    """Ask both ends, again and again, until one of them decides, or a fence does.

    Either the destination's journal decides, or the source promises that the last state is never sent. If the source
    may have sent it and the destination was fenced, it is lost: the destination may have run.
    """
    while True:
        asked = [asyncio.ensure_future(ask(ctx, reason)) for ask in (_by_destination, _by_source)]
        try:
            for answer in asyncio.as_completed(asked):
                found = await answer
                if found is Verdicts.PROMISED:
                    # That is enough; but a destination that answers, too, has cleared up by then.
                    await asyncio.wait(asked[:1], timeout=CLEARING)
                    return (asked[0].result() if asked[0].done() else None) or found
                if found is not None:
                    return found
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if await _destination_is_gone(ctx):
            return Verdicts.LOST
        offer = ctx.state.offered
        ctx.waits_for(f"hosts {offer.to} or {offer.source} to decide the move, or {offer.to} to be fenced")
        await asyncio.sleep(REPEAT)


async def _by_destination(ctx: Context, reason: str) -> Verdicts | None:
    try:
        claim = (await _ask_to_abandon(ctx, reason, patience=PATIENCE)).claim
    except UnavailableError:
        return None
    if claim is Claim.COMMITTED:
        return Verdicts.COMMITTED
    return Verdicts.STAYED if claim is Claim.ABANDONED else None


async def _by_source(ctx: Context, reason: str) -> Verdicts | None:
    offer = ctx.state.offered
    body = WithdrawMigration(vm=ctx.params.vm, epoch=offer.epoch, offer_id=ctx.id, reason=reason)
    try:
        answer = await ctx.send(MIGRATION_WITHDRAW, offer.source, body, patience=PATIENCE)
    except UnavailableError:
        return None
    return Verdicts.PROMISED if answer.never_sent else None


async def _destination_is_gone(ctx: Context) -> bool:
    """Whether the journal that could decide is out of reach for good: fenced, or replaced after a fence."""
    offer, prepared = ctx.state.offered, ctx.state.prepared
    async with ctx.store.read() as view:
        host, known = await view.hosts.named(offer.to), await view.lineage.incarnation(offer.to)
    if host is None or host.status.state is HostState.FENCED:
        return True
    return prepared is not None and known is not None and known.journal != prepared.journal


async def _ask_to_abandon(ctx: Context, reason: str, patience: float) -> Verdict:
    offer, prepared = ctx.state.offered, ctx.state.prepared
    body = AbandonMigration(
        vm=ctx.params.vm,
        epoch=offer.epoch,
        offer_id=ctx.id,
        journal=None if prepared is None else prepared.journal,
        reason=reason,
    )
    return await ctx.send(MIGRATION_ABANDON, offer.to, body, patience=patience)


async def _abandon(ctx: Context) -> None:
    """Undo of the offer: withdrawn once either end has said that the move will never arrive."""
    vm_id = ctx.params.vm
    if ctx.state.offer is None:
        # Refused, or the crash came between the offer's commit and the record of it: the lease itself knows.
        async with ctx.store.read() as view:
            lease = await view.leases.need(vm_id)
        if lease.offer_id != ctx.id or lease.offered_to is None:
            return
        ctx.remember(offer=Offer(epoch=lease.highest, source=lease.host, source_epoch=lease.epoch, to=lease.offered_to))
    found = await _verdict(ctx, "the move was given up")
    if found is Verdicts.COMMITTED:
        # It cannot be undone: it has happened. Say what is true.
        await _settle(ctx)
    elif found is Verdicts.LOST:
        await _end_lost_move(ctx)
    else:
        await _stay(ctx, found)


async def _stay(ctx: Context, found: Verdicts) -> None:
    vm_id, offer = ctx.params.vm, ctx.state.offered
    async with ctx.store.transaction() as tx:
        vm = await tx.vms.get(vm_id)
        await ctx.rights.withdraw(tx, vm_id, ctx.id)
        if found is Verdicts.PROMISED:
            why = f"the move to {offer.to} was given up, and it did not answer"
            body = AbandonMigration(vm=vm_id, epoch=offer.epoch, offer_id=ctx.id, reason=why)
            await tx.leftovers.add(offer.to, MIGRATION_ABANDON, body, f"VM {vm.name}", why)
    # The source runs on under the epoch before it.
    await refuse_or_leave(ctx, vm, offer.epoch, offer.to)
    async with ctx.store.transaction() as tx:
        if is_over(await tx.leases.need(vm_id)):
            await vms.observe(tx, vm_id, Event.FENCED, f"its host {offer.source} was fenced")
        else:
            await vms.observe(tx, vm_id, Event.MOVE_ENDED, "stayed: the move was given up")


async def _end_lost_move(ctx: Context) -> None:
    """The destination may have run and written to the disks: the memory that waits at the source must never go on.

    It starts from its disks under a fresh epoch, if its restart policy says so.
    """
    vm_id, offer = ctx.params.vm, ctx.state.offered
    async with ctx.store.read() as view:
        source = await view.hosts.named(offer.source)
    if source is not None and source.status.state is not HostState.FENCED:
        body = ReleaseVm(vm=vm_id, epoch=offer.epoch, reason=f"{offer.to} was fenced, and may have run it")
        await ctx.send(VM_RELEASE, offer.source, body, patience=PATIENCE)
    reason = f"the host that it moved to, {offer.to}, was fenced: it starts from its disks"
    async with ctx.store.transaction() as tx:
        before = await tx.leases.need(vm_id)
        # A lease that is not on offer any more has gone its own way: what is shown of the VM is not of this move.
        if await ctx.rights.end_move(tx, vm_id, ctx.id) != before:
            await vms.observe(tx, vm_id, Event.MOVE_LOST, reason)
        vm = await tx.vms.get(vm_id)
    if vm.spec.restart is RestartPolicy.NEVER or vm.status.state is not VmState.CRASHED:
        return
    try:
        await choose_host(ctx)
        await start_vm(ctx)
    except SeraiError as error:
        log.warning("VM %s is not restarted after its move was lost: %s", vm.name, error)
        reason = f"{reason}, but could not: {error.info.message}"
        async with ctx.store.transaction() as tx:
            await vms.observe(tx, vm_id, Event.START_FAILED_AGAIN, reason)


async def _settle(ctx: Context) -> None:
    """The VM is the destination's: database, fence of the old epoch, source cleared away.

    Who does not answer now does its part when it is back: nobody but the destination runs the VM meanwhile.
    """
    vm_id, offer = ctx.params.vm, ctx.state.offered
    outcome = ctx.state.outcome or MigrationOutcome(committed=True)
    figures = outcome.model_dump(exclude={"committed", "reason"})
    summary = MigrationSummary(mode="precopy", source=offer.source, destination=offer.to, **figures)
    async with ctx.store.transaction() as tx:
        vm = await tx.vms.get(vm_id)
        try:
            await ctx.rights.commit(tx, vm_id, offer.epoch, offer.to)
        except StaleError as error:
            # A later epoch was granted since, or a fence ended this one.
            log.info("job %s: %s", ctx.id, error)
        else:
            await _arrived(tx, vm_id, offer, summary)
    await refuse_or_leave(ctx, vm, offer.source_epoch)
    body = ReleaseVm(vm=vm_id, epoch=offer.source_epoch, reason=f"moved to {offer.to}")
    await send_or_leave(ctx, VM_RELEASE, offer.source, body, f"VM {vm.name}")
    ctx.result = {**summary.model_dump(mode="json"), "why": offer.why}


async def _arrived(tx: Transaction, vm_id: VmId, offer: Offer, summary: MigrationSummary) -> None:
    placement = f"moved from {offer.source}: {offer.why}"
    facts = {"host": offer.to, "epoch": offer.epoch, "last_migration": summary, "placement": placement}
    if await vms.observe(tx, vm_id, Event.MOVE_ENDED, f"arrived from {offer.source}", **facts) is None:
        await vms.note(tx, vm_id, **facts)


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
    outlives_restore=True,
)
