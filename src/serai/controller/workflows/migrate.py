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
from serai.controller.workflows.common import (
    Office,
    await_reports,
    document,
    facts_of,
    make_launch,
    refuse_or_leave,
    send_or_leave,
    start_vm,
    with_boot,
)
from serai.controller.workflows.lifecycle import replace
from serai.controller.workflows.shelf import ForPlacing
from serai.core import launch as plan
from serai.core.lease import is_over
from serai.core.migration import agreed_capabilities, check_nothing_pending
from serai.core.placement import choose_destination
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
from serai.schema.host import HostState
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Claim
from serai.schema.resource import Frozen
from serai.schema.vm import MigrationSummary, RestartPolicy, VmState

DOWNTIME_LIMIT_MS = 20
"""QEMU switches when it expects less than this; shorter makes more rounds, longer a longer blackout."""
REPEAT = 3.0
"""Seconds after which a cancel, or a question that nobody answered, is repeated."""
PATIENCE = 10.0
"""Seconds of silence of one end after which the other one's word, or a fence, is looked for."""
GRACE = 5.0
"""Seconds that the source gets to say how it went, once the destination has decided."""

log = logging.getLogger(__name__)


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

    await await_reports(office, ctx, ctx.params.vm)
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
        document=document(parts),
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
    """Start the source and take the outcome: its own word, or that of the destination if the source says nothing."""
    offer, prepared = ctx.state.offered, ctx.state.prepared
    assert prepared is not None, "the step before this one remembers it"
    body = StartMigration(
        vm=ctx.params.vm,
        epoch=offer.epoch,
        offer_id=ctx.id,
        destination=offer.to,
        journal=prepared.journal,
        address=prepared.address,
        port=prepared.port,
        tls_hostname=prepared.tls_hostname,
        capabilities=offer.capabilities,
        downtime_limit_ms=DOWNTIME_LIMIT_MS,
    )
    # The engine's own cancel would leave the outcome open.
    ctx.cancellable = False
    source = asyncio.ensure_future(ctx.send(MIGRATION_START, offer.source, body))
    decided = asyncio.ensure_future(_decided_without_source(office, ctx))
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


async def _decided_without_source(office: Office, ctx: Context) -> MigrationOutcome:
    """What the lease says once the destination has reported that it runs the VM; and a cancel, repeated until then."""
    offer = ctx.state.offered
    while True:
        newest = ctx.store.bell.newest
        lease = await office.shelf.lease(ctx.params.vm)
        if lease.epoch >= offer.epoch:
            return MigrationOutcome(committed=True)
        if ctx.cancelled.is_set() and (claim := await _cancel(ctx)) is not None:
            return MigrationOutcome(committed=claim is Claim.COMMITTED, reason="cancelled on request")
        more = asyncio.ensure_future(ctx.store.bell.beyond(newest))
        waits = {more} if ctx.cancelled.is_set() else {more, asyncio.ensure_future(ctx.cancelled.wait())}
        try:
            await asyncio.wait(waits, timeout=REPEAT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()


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


async def _moved(office: Office, ctx: Context) -> bool:
    """After a crash of the controller in mid-move: the journals say what became of it.

    Asking for the end of the move gets the verdict: either it is committed already, or it never will be.
    """
    if await _verdict(office, ctx, "the controller was restarted in mid-migration") is not Verdicts.COMMITTED:
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


async def _verdict(office: Office, ctx: Context, reason: str) -> Verdicts:
    """Ask both ends, again and again, until one of them decides, or a fence does.

    Either the destination's journal decides, or the source promises that the last state is never sent. If the source
    may have sent it and the destination was fenced, it is lost: the destination may have run.
    """
    while True:
        asked = [asyncio.ensure_future(ask(ctx, reason)) for ask in (_by_destination, _by_source)]
        try:
            for answer in asyncio.as_completed(asked):
                if (found := await answer) is not None:
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


async def _abandon(office: Office, ctx: Context) -> None:
    """Undo of the offer: withdrawn once either end has said that the move will never arrive."""
    vm_id = ctx.params.vm
    if ctx.state.offer is None:
        # Refused, or the crash came between the offer's commit and the record of it: the lease itself knows.
        lease = await office.shelf.lease(vm_id)
        if lease.offer_id != ctx.id or lease.offered_to is None:
            return
        ctx.remember(offer=Offer(epoch=lease.highest, source=lease.host, source_epoch=lease.epoch, to=lease.offered_to))
    found = await _verdict(office, ctx, "the move was given up")
    if found is Verdicts.COMMITTED:
        # It cannot be undone: it has happened. Say what is true.
        await _settle(office, ctx)
    elif found is Verdicts.LOST:
        await _end_lost_move(office, ctx)
    else:
        await _stay(office, ctx, found)


async def _stay(office: Office, ctx: Context, found: Verdicts) -> None:
    vm_id, offer = ctx.params.vm, ctx.state.offered
    vm = await office.shelf.vm(vm_id)
    async with ctx.store.transaction() as tx:
        await office.rights.withdraw(tx, vm_id, ctx.id)
        if found is Verdicts.PROMISED:
            why = f"the move to {offer.to} was given up, and it did not answer"
            body = AbandonMigration(vm=vm_id, epoch=offer.epoch, offer_id=ctx.id, reason=why)
            await tx.leftovers.add(offer.to, MIGRATION_ABANDON, body, f"VM {vm.name}", why)
    await refuse_or_leave(office, ctx, vm, offer.epoch)
    if is_over(await office.shelf.lease(vm_id)):
        reason = f"its host {offer.source} was fenced"
        await office.shelf.set_vm_status(vm_id, state=VmState.CRASHED, reason=reason, pid=None, guest_agent=False)
    elif (await office.shelf.vm(vm_id)).status.state is VmState.MIGRATING:
        await office.shelf.set_vm_status(vm_id, state=VmState.RUNNING, reason="stayed: the move was given up")


async def _end_lost_move(office: Office, ctx: Context) -> None:
    """The destination may have run and written to the disks: the memory that waits at the source must never go on.

    It starts from its disks under a fresh epoch, if its restart policy says so.
    """
    vm_id, offer = ctx.params.vm, ctx.state.offered
    async with ctx.store.read() as view:
        source = await view.hosts.named(offer.source)
    if source is not None and source.status.state is not HostState.FENCED:
        body = ReleaseVm(vm=vm_id, epoch=offer.epoch, reason=f"{offer.to} was fenced, and may have run it")
        await ctx.send(VM_RELEASE, offer.source, body, patience=PATIENCE)
    async with ctx.store.transaction() as tx:
        await office.rights.end_move(tx, vm_id, ctx.id)
    reason = f"the host that it moved to, {offer.to}, was fenced: it starts from its disks"
    vm = await office.shelf.set_vm_status(vm_id, state=VmState.CRASHED, reason=reason, pid=None, guest_agent=False)
    if vm.spec.restart is RestartPolicy.NEVER:
        return
    try:
        await replace(office, ctx, vm_id, None)
        await start_vm(office, ctx, vm_id)
    except SeraiError as error:
        log.warning("VM %s is not restarted after its move was lost: %s", vm.name, error)
        reason = f"{reason}, but could not: {error.info.message}"
        await office.shelf.set_vm_status(vm_id, state=VmState.CRASHED, reason=reason)


async def _settle(office: Office, ctx: Context) -> None:
    """The VM is the destination's: database, fence of the old epoch, source cleared away.

    Who does not answer now does its part when it is back: nobody but the destination runs the VM meanwhile.
    """
    vm_id, offer = ctx.params.vm, ctx.state.offered
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
    try:
        await office.shelf.commit(vm_id, offer.epoch, offer.to)
    except StaleError as error:
        # A later epoch was granted since, or a fence ended this one.
        log.info("job %s: %s", ctx.id, error)
    else:
        await office.shelf.arrived(vm_id, offer.to, offer.epoch, summary, offer.why)
    vm = await office.shelf.vm(vm_id)
    await refuse_or_leave(office, ctx, vm, offer.source_epoch)
    body = ReleaseVm(vm=vm_id, epoch=offer.source_epoch, reason=f"moved to {offer.to}")
    await send_or_leave(ctx, VM_RELEASE, offer.source, body, f"VM {vm.name}")
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
