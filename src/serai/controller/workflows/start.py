"""`vm.start`: a stopped VM starts where it was, or on another host once the old one has let go."""

from __future__ import annotations

from typing import Any

from serai.controller.hosts import observed
from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow
from serai.controller.services import capacity, vms
from serai.controller.services.checks import need_online
from serai.controller.workflows.common import VmParams, refuse, release
from serai.controller.workflows.launches import launch_body, with_boot
from serai.core import launch as plan
from serai.core.lease import is_over
from serai.core.observed import BEGUN, Event
from serai.core.placement import choose_start
from serai.schema.commands.vm import VM_START, LaunchBody, StartVm
from serai.schema.errors import (
    CancelledByUserError,
    ConflictError,
    SeraiError,
    StaleError,
    TakenError,
    UnavailableError,
)
from serai.schema.ids import HostName
from serai.schema.lease import Lease
from serai.schema.vm import Vm, VmReport, VmState


class StartParams(VmParams):
    """`host` none: where it was before, or where placement puts it."""

    host: HostName | None = None


Context = JobContext[VmParams, Any]


async def choose_host(ctx: Context, wanted: HostName | None = None) -> None:
    """A stopped VM starts where it was, or on the host that was asked for; elsewhere, once the old one has let go.

    The old one's answer to the release is the proof that nothing of the VM runs there, nor ever will. An epoch that a
    fence has ended needs no such answer.
    """
    vm_id = ctx.params.vm
    await ctx.await_reports(vm_id)
    async with ctx.store.read() as view:
        vm, lease = await view.vms.get(vm_id), await view.leases.need(vm_id)
        hosts, ties = await capacity.for_placing(view, vm, starts=vm.spec.running)
    _check_down(vm)
    over = is_over(lease)
    choice = choose_start(vm, hosts, wanted, None if over else lease.host, ties)
    moves = over or choice.host != lease.host
    if moves:
        await release(ctx, lease, f"starts on {choice.host}")
        await refuse(ctx, vm, lease)
    async with ctx.store.transaction() as tx:
        if moves:
            lease = await ctx.rights.advance(tx, lease, choice.host)
        await vms.note(tx, vm.id, host=choice.host, placement=choice.why, epoch=lease.epoch)
    ctx.progress(None, f"on {choice.host}: {choice.why}")


def _check_down(vm: Vm) -> None:
    """A host that was waited for may have said that it runs: it must not be ended by a start. Raises ConflictError."""
    if vm.status.state in (*BEGUN, VmState.UNKNOWN):
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state} on {vm.status.host}",
            field="state",
            value=vm.status.state,
            remedy=f"See what it does: serai vm show {vm.name}.",
        )


async def start_vm(ctx: Context) -> None:
    """Start a VM under its lease, on the lease's host, and record what became of it."""
    vm_id = ctx.params.vm
    async with ctx.store.transaction() as tx:
        lease = await tx.leases.need(vm_id)
        host = await tx.hosts.need(lease.host)
        facts = need_online(host)
        spec = (await tx.vms.get(vm_id)).spec
        machine = spec.machine_type or plan.pin_machine(spec.machine, facts)
        pinned = spec.model_copy(update={"machine_type": machine, "max_cpus": plan.room_for_cpus(spec, machine)})
        if pinned != spec:
            await tx.vms.set_spec(vm_id, pinned)
        parts = await vms.parts(tx, vm_id)
    vm = parts.vm
    if is_over(lease):
        # Its grant was retracted, and the controller restarted while hosts were waited for.
        lease = await _renew(ctx, vm, lease.host)
    try:
        body = await launch_body(ctx, parts, host, lease.epoch)
        report = await with_boot(ctx, parts, host.name, lambda: _send_start(ctx, vm, lease, body))
    except StaleError as error:
        if error.info.field != "epoch":
            raise
        if isinstance(error, TakenError):
            await release(ctx, lease, f"epoch {lease.epoch} was granted to another host")
            async with ctx.store.transaction() as tx:
                lease = await ctx.rights.retract(tx, vm_id, int(error.info.value or 0))
        # The host has given that epoch up, as a start elsewhere came to nothing; or the epoch was never its own.
        lease = await _renew(ctx, vm, lease.host)
        report = await _send_start(ctx, vm, lease, await launch_body(ctx, parts, host, lease.epoch))
    async with ctx.store.transaction() as tx:
        await observed.apply(tx, ctx.rights, report)
        await vms.set_pending(tx, vm_id)
    warning = {"warning": facts.emulated} if report.accel != "kvm" and facts.emulated else {}
    ctx.result = {
        "host": lease.host,
        "why": vm.status.placement,
        "state": report.state,
        "accel": report.accel,
        "addresses": addresses(vm),
        **warning,
    }


async def _send_start(ctx: AnyContext, vm: Vm, lease: Lease, launch: LaunchBody) -> VmReport:
    async with ctx.store.transaction() as tx:
        await vms.observe(tx, vm.id, Event.START, "", host=lease.host)
    try:
        body = StartVm(**dict(launch), epoch=lease.epoch)
        return await ctx.send(VM_START, lease.host, body, generation=vm.generation)
    except SeraiError as error:
        event, reason = Event.START_FAILED, f"could not start: {error.info.message}"
        if isinstance(error, UnavailableError | CancelledByUserError):
            event, reason = Event.START_UNANSWERED, error.info.message
        elif vm.status.state is VmState.CRASHED:
            event = Event.START_FAILED_AGAIN
        async with ctx.store.transaction() as tx:
            await vms.observe(tx, vm.id, event, reason)
        raise


async def _renew(ctx: AnyContext, vm: Vm, host: HostName) -> Lease:
    """A fresh epoch on the host, for a VM whose epoch is over there.

    Released once more first: it is idempotent, and the answer is the proof that nothing runs under the old one.
    """
    await ctx.await_reports(vm.id)
    async with ctx.store.read() as view:
        now, lease = await view.vms.get(vm.id), await view.leases.need(vm.id)
    _check_down(now)
    await release(ctx, lease, "starts under a fresh epoch")
    await refuse(ctx, vm, lease)
    async with ctx.store.transaction() as tx:
        fresh = await ctx.rights.advance(tx, lease, host)
        await vms.note(tx, vm.id, epoch=fresh.epoch)
    return fresh


def addresses(vm: Vm) -> list[str]:
    """The VM's own addresses."""
    return [str(vnic.ip) for vnic in vm.spec.vnics if vnic.ip is not None]


async def _place(ctx: JobContext[StartParams, NoState]) -> None:
    await choose_host(ctx, ctx.params.host)


START_VM = Workflow(
    "vm.start",
    StartParams,
    NoState,
    (Step("place", _place, repeatable=True), Step("start", start_vm, repeatable=True)),
)
