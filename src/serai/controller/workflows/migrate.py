"""`vm.migrate`: a running VM moves to another host.

Steps: offer the lease, prepare the destination, move, settle. What speaks against the move is looked for in the
transaction that offers; the offer is durable before either end hears of it; the commit is the destination's own
(`host/incoming.py`). Until then every failure ends with the VM on the source: undoing asks the destination to abandon,
and only its word withdraws the offer. After it, `settle` goes on until the database says what is true. A controller
that dies in between does either, by what the journals say.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from serai.controller.jobs import JobContext, StepDef, Workflow
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
from serai.schema.lease import Claim
from serai.schema.vm import MigrationSummary, VmState

DOWNTIME_LIMIT_MS = 20
"""QEMU switches when it expects less than this; shorter makes more rounds, longer a longer blackout."""


def workflow(office: Office) -> Workflow:
    """The steps, bound to what they work with."""

    async def offer(ctx: JobContext) -> None:
        await _offer(office, ctx)

    async def prepare(ctx: JobContext) -> None:
        await _prepare(office, ctx)

    async def move(ctx: JobContext) -> None:
        await _move(office, ctx)

    async def moved(ctx: JobContext) -> bool:
        return await _moved(office, ctx)

    async def abandon(ctx: JobContext) -> None:
        await _abandon(office, ctx)

    async def settle(ctx: JobContext) -> None:
        await _settle(office, ctx)

    return Workflow(
        "vm.migrate",
        (
            StepDef("offer", offer, undo=abandon, repeatable=True),
            StepDef("prepare", prepare),
            StepDef("move", move, resume=moved, point_of_no_return=True),
            StepDef("settle", settle, repeatable=True, cancellable=False),
        ),
    )


async def _offer(office: Office, ctx: JobContext) -> None:
    """Everything that can be known beforehand is known before anything is prepared. The job's id names the offer."""
    decided: dict[str, Any] = {}

    def decide(found: ForPlacing) -> str:
        offered = found.lease is not None and found.lease.offer_id == ctx.id
        # After a crash the step comes again: an offer that stands is not made to somebody else.
        wanted = found.lease.offered_to if offered and found.lease is not None else ctx.params.get("to")
        decided.update(_decide(found, wanted))
        return str(decided["to"])

    lease = await office.shelf.offer(ctx.params["id"], ctx.id, decide)
    ctx.data.update(decided, epoch=lease.highest, offer_id=ctx.id)
    ctx.progress(None, f"to {decided['to']}: {decided['why']}")


def _decide(found: ForPlacing, wanted: str | None) -> dict[str, Any]:
    """Where to, and what both ends are told. Raises what speaks against the move."""
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
    return {
        "source": lease.host,
        "source_epoch": lease.epoch,
        "to": choice.host,
        "why": choice.why,
        "capabilities": agreed_capabilities(source, destination),
    }


async def _prepare(office: Office, ctx: JobContext) -> None:
    to, epoch = ctx.data["to"], ctx.data["epoch"]
    parts = await office.shelf.for_launch(ctx.params["id"], to)
    vm = parts.vm
    launch = await make_launch(office, ctx, parts, epoch)
    body = PrepareMigration(
        launch=launch,
        epoch=epoch,
        offer_id=ctx.data["offer_id"],
        source=ctx.data["source"],
        source_identity=qemu_identity(ctx.data["source"]),
        capabilities=ctx.data["capabilities"],
        restart=vm.spec.restart,
        autostart=vm.spec.autostart,
        autostart_order=vm.spec.autostart_order,
    )
    prepared = await with_boot(office, ctx, parts, lambda: ctx.send(MIGRATION_PREPARE, to, body))
    ctx.data["prepared"] = prepared.model_dump(mode="json")


async def _move(office: Office, ctx: JobContext) -> None:
    """Start the source, watch for a cancel, and take the outcome: committed, or the VM stayed."""
    prepared = MigrationEndpoint.model_validate(ctx.data["prepared"])
    vm = ctx.params["id"]
    body = StartMigration(
        vm=vm,
        epoch=ctx.data["epoch"],
        offer_id=ctx.data["offer_id"],
        destination=ctx.data["to"],
        address=prepared.address,
        port=prepared.port,
        tls_hostname=prepared.tls_hostname,
        capabilities=ctx.data["capabilities"],
        downtime_limit_ms=DOWNTIME_LIMIT_MS,
    )
    watcher = asyncio.create_task(_cancel_on_request(ctx))
    # The engine's own cancel would leave the outcome open: the source's word on it is always waited for.
    ctx.cancellable = False
    try:
        outcome = await ctx.send(MIGRATION_START, ctx.data["source"], body)
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
    if not outcome.committed:
        kind = CancelledByUserError if ctx.cancelled.is_set() else HostError
        raise kind(f"the VM stayed on {ctx.data['source']}: {outcome.reason}")
    ctx.data["outcome"] = outcome.model_dump(mode="json")


async def _cancel_on_request(ctx: JobContext) -> None:
    await ctx.cancelled.wait()
    body = CancelMigration(vm=ctx.params["id"], offer_id=ctx.data["offer_id"])
    answer = await ctx.send(MIGRATION_CANCEL, ctx.data["source"], body)
    if answer.too_late:
        ctx.progress(None, "too late to cancel: the switch has begun")
        return
    # The source's QEMU may be waiting for a partner that says nothing: it hears of its end when that one hangs up.
    await _ask_to_abandon(ctx, body.reason)


async def _moved(office: Office, ctx: JobContext) -> bool:
    """After a crash of the controller in mid-move: the destination's journal says what became of it.

    Asking to abandon gets the verdict: either it is committed already, or it never will be.
    """
    verdict = await _ask_to_abandon(ctx, "the controller was restarted in mid-migration")
    if verdict.claim is not Claim.COMMITTED:
        source, to = ctx.data["source"], ctx.data["to"]
        raise InterruptedByRestartError(
            f"the controller was restarted in mid-migration: the VM stayed on {source}",
            field="to",
            value=to,
            remedy=f"Move it again: serai vm migrate {ctx.target.partition('/')[2]} --to {to}",
        )
    return True


async def _ask_to_abandon(ctx: JobContext, reason: str) -> Verdict:
    body = AbandonMigration(vm=ctx.params["id"], epoch=ctx.data["epoch"], offer_id=ctx.data["offer_id"], reason=reason)
    return await ctx.send(MIGRATION_ABANDON, ctx.data["to"], body)


async def _abandon(office: Office, ctx: JobContext) -> None:
    """Undo of the offer: withdrawn only once the destination has turned it down for ever."""
    vm_id = ctx.params["id"]
    if "epoch" not in ctx.data:
        # Refused, or the crash came between the offer's commit and the record of it: the lease itself knows.
        lease = await office.shelf.lease(vm_id)
        if lease.offer_id != ctx.id or lease.offered_to is None:
            return
        ctx.data.update(
            offer_id=ctx.id, epoch=lease.highest, to=lease.offered_to, source=lease.host, source_epoch=lease.epoch
        )
    verdict = await _ask_to_abandon(ctx, "the move was given up")
    if verdict.claim is Claim.COMMITTED:
        # It cannot be undone: it has happened. Say what is true.
        await _settle(office, ctx)
        return
    await office.shelf.withdraw(vm_id, ctx.data["offer_id"])
    vm = await office.shelf.vm(vm_id)
    await refuse(office, ctx, vm, ctx.data["epoch"])
    if vm.status.state is VmState.MIGRATING:
        await office.shelf.set_vm_status(vm_id, state=VmState.RUNNING, reason="stayed: the move was given up")


async def _settle(office: Office, ctx: JobContext) -> None:
    """The VM is the destination's: database, fence of the old epoch, source cleared away."""
    vm_id, to, source = ctx.params["id"], ctx.data["to"], ctx.data["source"]
    await office.shelf.commit(vm_id, ctx.data["epoch"], to)
    outcome = MigrationOutcome.model_validate(ctx.data.get("outcome") or {"committed": True})
    summary = MigrationSummary(
        mode="precopy",
        source=source,
        destination=to,
        total_s=outcome.total_s,
        downtime_ms=outcome.downtime_ms,
        rounds=outcome.rounds,
        bytes_sent=outcome.bytes_sent,
        phases=outcome.phases,
        resumed=outcome.resumed,
    )
    await office.shelf.arrived(vm_id, to, ctx.data["epoch"], summary, ctx.data.get("why", "as was offered"))
    vm = await office.shelf.vm(vm_id)
    await refuse(office, ctx, vm, ctx.data["source_epoch"])
    body = ReleaseVm(vm=vm_id, epoch=ctx.data["source_epoch"], reason=f"moved to {to}")
    await ctx.send(VM_RELEASE, source, body, patience=float("inf"))
    ctx.result = {**summary.model_dump(mode="json"), "why": ctx.data.get("why", "")}
