"""The VM's life: create, start, stop, pause, resume, reset, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from serai.controller.commands import VmTarget
from serai.controller.hosts.observed import BEGUN, FULL
from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow
from serai.controller.workflows.common import (
    Office,
    addresses,
    await_reports,
    image_of,
    make_volume,
    refuse,
    release,
    start_vm,
)
from serai.controller.workflows.shelf import FREE, ForPlacing
from serai.core.lease import is_over
from serai.core.placement import Choice, choose_start, place
from serai.schema.commands.base import Command
from serai.schema.commands.vm import VM_PAUSE, VM_RESET, VM_RESUME, VM_STOP, SignalVm, StopVm
from serai.schema.commands.volume import VOLUME_DELETE, DeleteVolume
from serai.schema.errors import CapacityError, ConflictError, NotFoundError, SeraiError
from serai.schema.ids import HostName, VmId
from serai.schema.image import ImageKind
from serai.schema.lease import Lease
from serai.schema.resource import Frozen
from serai.schema.vm import Vm, VmReport, VmState
from serai.schema.volume import VolumeState


class VmParams(Frozen):
    vm: VmId


class StartParams(VmParams):
    """`host` none: where it was before, or where placement puts it."""

    host: HostName | None = None


class ForceParams(VmParams):
    force: bool = False


class StopParams(ForceParams):
    """`timeout`: seconds that the guest gets before it is stopped by force."""

    timeout: float = 60.0


class RestartState(Frozen):
    stopped: str | None = None
    """How it was stopped; none if it was down."""


def _preempted(params: ForceParams) -> Sequence[str]:
    """Force waits neither for a move, which may never converge, nor for a guest that was asked to shut down."""
    return ("vm.migrate", "vm.stop") if params.force else ()


async def _place(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
    """Pick the host, say why, and give it the lease."""
    await await_reports(office, ctx, ctx.params.vm)
    choice = await office.shelf.place(ctx.params.vm, _first_host)
    ctx.progress(None, f"on {choice.host}: {choice.why}")


def _first_host(found: ForPlacing) -> Choice:
    # A lease that is there is from before a crash: the step comes again.
    return place(found.vm, found.hosts, found.ties, prefer=found.lease.host if found.lease is not None else None)


async def _place_stopped(office: Office, ctx: JobContext[StartParams, NoState]) -> None:
    await replace(office, ctx, ctx.params.vm, ctx.params.host)


async def _place_again(office: Office, ctx: JobContext[VmParams, RestartState]) -> None:
    await replace(office, ctx, ctx.params.vm, None)


async def replace(office: Office, ctx: AnyContext, vm_id: VmId, wanted: HostName | None) -> None:
    """A stopped VM starts where it was, or on the host that was asked for; elsewhere, once the old one has let go.

    The old one's answer to the release is the proof that nothing of the VM runs there, nor ever will. An epoch that a
    fence has ended needs no such answer.
    """
    await await_reports(office, ctx, vm_id)
    found = await office.shelf.for_placing(vm_id)
    vm = found.vm
    if vm.status.state in (*BEGUN, VmState.UNKNOWN):
        # A host that was waited for has said so: it must not be ended by a start.
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state} on {vm.status.host}",
            field="state",
            value=vm.status.state,
            remedy=f"See what it does: serai vm show {vm.name}.",
        )
    lease = found.lease or await office.shelf.lease(vm.id)
    over = is_over(lease)
    choice = choose_start(vm, found.hosts, wanted, None if over else lease.host, found.ties)
    if over or choice.host != lease.host:
        await release(office, ctx, lease, f"starts on {choice.host}")
        await refuse(office, ctx, vm, lease)
        lease = await office.shelf.advance(vm.id, choice.host)
    await office.shelf.set_vm_status(vm.id, host=choice.host, placement=choice.why, epoch=lease.epoch)
    ctx.progress(None, f"on {choice.host}: {choice.why}")


async def _make_volumes(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
    """Make the volumes that the VM brought with it; the first one starts with the image's content."""
    vm = await office.shelf.vm(ctx.params.vm)
    image = await image_of(office, vm)
    manifest = image.status.manifest if image is not None else None
    for index, volume_id in enumerate(vm.spec.volumes):
        volume = await office.shelf.volume(volume_id)
        if volume.status.state is VolumeState.READY:
            continue
        pool = await office.shelf.pool(volume.spec.pool)
        starts = index == 0 and manifest is not None and manifest.kind is ImageKind.DISK
        await make_volume(office, ctx, volume, pool, image if starts else None)
        await office.shelf.set_volume_status(volume.id, state=VolumeState.READY, size=volume.spec.size, reason="")


async def _start_new(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
    vm = await office.shelf.vm(ctx.params.vm)
    if vm.spec.running:
        await start_vm(office, ctx, vm.id)
        return
    await office.shelf.set_vm_status(vm.id, state=VmState.STOPPED, reason="created, not started")
    ctx.result = {"host": vm.status.host, "state": VmState.STOPPED, "addresses": addresses(vm)}


async def _start(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
    await start_vm(office, ctx, ctx.params.vm)


async def _stop_to_restart(office: Office, ctx: JobContext[StopParams, RestartState]) -> None:
    await _stop(office, ctx)
    ctx.remember(stopped=(ctx.result or {}).get("reason"))


async def _start_again(office: Office, ctx: JobContext[VmParams, RestartState]) -> None:
    await start_vm(office, ctx, ctx.params.vm)
    if ctx.state.stopped is not None:
        ctx.result = {**(ctx.result or {}), "stopped": ctx.state.stopped}


async def _stop(office: Office, ctx: JobContext[StopParams, Any]) -> None:
    vm = await office.shelf.vm(ctx.params.vm)
    if vm.status.state in (VmState.DEFINED, VmState.STOPPED):
        ctx.result = {"state": vm.status.state}
        return
    # On the move, with no job of a move at work: its source waits for a verdict that may never come.
    if vm.status.state in (VmState.UNKNOWN, VmState.MIGRATING) and ctx.params.force:
        await _end_unknown(office, ctx, vm)
        return
    body = StopVm(vm=vm.id, force=ctx.params.force, timeout=ctx.params.timeout)
    expediting = asyncio.create_task(_force_when_expedited(ctx, vm.id))
    try:
        report = await ctx.send(VM_STOP, VmTarget(vm.id), body, patience=ctx.params.timeout + 60.0)
    finally:
        expediting.cancel()
        await asyncio.gather(expediting, return_exceptions=True)
    await office.shelf.take_report(report)
    ctx.result = {"state": report.state, "reason": report.reason}


async def _end_unknown(office: Office, ctx: AnyContext, vm: Vm) -> None:
    """By the release of its lease: that also ends a QEMU that does not answer, that its host's journal lost, or that
    waits for the verdict of a move.
    """
    lease = await _lease_at_rest(office, vm)
    reason = "stopped by force"
    await release(office, ctx, lease, reason)
    await office.shelf.set_vm_status(vm.id, state=VmState.STOPPED, reason=reason, pid=None, guest_agent=False)
    ctx.result = {"state": VmState.STOPPED, "reason": reason}


async def _lease_at_rest(office: Office, vm: Vm) -> Lease:
    """The VM's lease. Raises NotFoundError, and ConflictError while it is offered to another host."""
    lease = await office.shelf.lease(vm.id)
    if lease.offered_to is not None:
        raise ConflictError(
            f"VM {vm.name} is on the move", field="vm", value=vm.name, remedy="Wait until it has arrived."
        )
    return lease


async def _force_when_expedited(ctx: AnyContext, vm_id: VmId) -> None:
    """The first command is answered once the second has ended the VM."""
    await ctx.expedited.wait()
    ctx.progress(None, "by force: another job does not wait for the guest")
    await ctx.send(VM_STOP, VmTarget(vm_id), StopVm(vm=vm_id, force=True))


def _signal(kind: str, step: str, command: Command[SignalVm, VmReport]) -> Workflow[VmParams, NoState]:
    async def run(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
        vm_id = ctx.params.vm
        report = await ctx.send(command, VmTarget(vm_id), SignalVm(vm=vm_id))
        await office.shelf.take_report(report)
        ctx.result = {"state": report.state}
        if command is VM_RESUME and report.state is VmState.PAUSED:
            raise await _stopped_again(office, vm_id, report.reason)

    return Workflow(kind, VmParams, NoState, (Step(step, run, repeatable=True),))


async def _stopped_again(office: Office, vm_id: VmId, reason: str) -> SeraiError:
    """Why a VM that was resumed does not run: the pool that is full, where there is one."""
    vm = await office.shelf.vm(vm_id)
    pools = {pool.name: pool for _, pool in await office.shelf.disks(vm)}
    full = [f"pool {name} on {pool.spec.host}" for name, pool in sorted(pools.items()) if pool.status.free < FULL]
    if full:
        return CapacityError(
            f"VM {vm.name} stopped again at once: no room is left in {', '.join(full)}",
            field="state",
            value=VmState.PAUSED,
            remedy=f"Make room there, then: serai vm resume {vm.name}",
        )
    return ConflictError(
        f"VM {vm.name} stopped again at once: {reason}",
        field="state",
        value=VmState.PAUSED,
        remedy="Look at the pools of its disks: serai pool list.",
    )


async def _take_down(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
    """End the VM wherever its lease is, and fence it: nothing of it runs when this returns."""
    vm_id = ctx.params.vm
    vm = await office.shelf.vm(vm_id)
    try:
        lease = await _lease_at_rest(office, vm)
    except NotFoundError:
        return
    await release(office, ctx, lease, "deleted", patience=float("inf"))
    await refuse(office, ctx, vm, lease)


async def _drop_volumes(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
    """Delete the volumes that the VM owns; others, and those to keep, only lose it."""
    vm = await office.shelf.vm(ctx.params.vm)
    for disk in vm.spec.disks:
        assert disk.volume is not None, "a disk in the store has a volume"
        try:
            volume = await office.shelf.volume(disk.volume)
        except NotFoundError:
            continue
        if disk.keep or volume.status.owner != vm.id:
            await office.shelf.set_volume_status(volume.id, **FREE)
            continue
        pool = await office.shelf.pool(volume.spec.pool)
        body = DeleteVolume(pool=pool.id, volume=volume.id)
        await ctx.send(VOLUME_DELETE, pool.spec.host, body, patience=float("inf"))
        await office.shelf.delete_volume(volume.id)


async def _forget(office: Office, ctx: JobContext[VmParams, NoState]) -> None:
    """The database forgets the VM, its lease and its addresses, and says so."""
    await office.shelf.drop_vm(ctx.params.vm)
    ctx.result = {"deleted": ctx.target}


CREATE_VM = Workflow(
    "vm.create",
    VmParams,
    NoState,
    (
        Step("place", _place, undo=_forget, repeatable=True),
        Step("volumes", _make_volumes, undo=_drop_volumes, repeatable=True),
        Step("start", _start_new, undo=_take_down, repeatable=True),
    ),
)
START_VM = Workflow(
    "vm.start",
    StartParams,
    NoState,
    (Step("place", _place_stopped, repeatable=True), Step("start", _start, repeatable=True)),
)
RESTART_VM = Workflow(
    "vm.restart",
    StopParams,
    RestartState,
    (
        Step("stop", _stop_to_restart, repeatable=True, cancellable=False),
        Step("place", _place_again, repeatable=True),
        Step("start", _start_again, repeatable=True),
    ),
)
# The guest has been asked, and cannot be asked back: a cancel waits for what becomes of it.
STOP_VM = Workflow(
    "vm.stop",
    StopParams,
    NoState,
    (Step("stop", _stop, repeatable=True, cancellable=False),),
    preempts=_preempted,
    expedites=True,
)
PAUSE_VM = _signal("vm.pause", "pause", VM_PAUSE)
RESUME_VM = _signal("vm.resume", "resume", VM_RESUME)
RESET_VM = _signal("vm.reset", "reset", VM_RESET)
DELETE_VM = Workflow(
    "vm.delete",
    ForceParams,
    NoState,
    (
        Step("stop", _take_down, repeatable=True, cancellable=False, point_of_no_return=True),
        Step("volumes", _drop_volumes, repeatable=True, cancellable=False),
        Step("forget", _forget, repeatable=True, cancellable=False),
    ),
    preempts=_preempted,
)
