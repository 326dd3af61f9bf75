"""The VM's life: create, start, stop, pause, resume, reset, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from serai.controller.commands import VmTarget
from serai.controller.jobs import JobContext, StepDef, Workflow
from serai.controller.reports import FULL
from serai.controller.workflows.common import Office, addresses, image_of, make_volume, refuse, start_vm
from serai.controller.workflows.shelf import ForPlacing
from serai.core.placement import Choice, choose_start, place
from serai.schema.commands.base import Command
from serai.schema.commands.vm import VM_PAUSE, VM_RELEASE, VM_RESET, VM_RESUME, VM_STOP, ReleaseVm, SignalVm, StopVm
from serai.schema.commands.volume import VOLUME_DELETE, DeleteVolume
from serai.schema.errors import CapacityError, ConflictError, NotFoundError, SeraiError
from serai.schema.image import ImageKind
from serai.schema.job import Job
from serai.schema.lease import Lease
from serai.schema.vm import Vm, VmReport, VmState
from serai.schema.volume import VolumeState

STOPPED = "stopped"
"""Key in a job's data: how the VM was stopped."""


def workflows(office: Office) -> list[Workflow]:
    """All kinds of this file."""

    def bound(action: Callable[[Office, JobContext], Awaitable[None]]) -> Callable[[JobContext], Awaitable[None]]:
        async def step(ctx: JobContext) -> None:
            await action(office, ctx)

        return step

    def one(kind: str, name: str, action: Callable[[Office, JobContext], Awaitable[None]]) -> Workflow:
        return Workflow(kind, (StepDef(name, bound(action), repeatable=True),))

    return [
        Workflow(
            "vm.create",
            (
                StepDef("place", bound(_place), undo=bound(_forget), repeatable=True),
                StepDef("volumes", bound(_volumes), undo=bound(_drop_volumes), repeatable=True),
                StepDef("start", bound(_start), undo=bound(_take_down), repeatable=True),
            ),
        ),
        Workflow(
            "vm.start",
            (
                StepDef("place", bound(_replace), repeatable=True),
                StepDef("start", bound(_start), repeatable=True),
            ),
        ),
        Workflow(
            "vm.restart",
            (
                StepDef("stop", bound(_stop), repeatable=True, cancellable=False),
                StepDef("place", bound(_replace), repeatable=True),
                StepDef("start", bound(_start), repeatable=True),
            ),
        ),
        # The guest has been asked, and cannot be asked back: a cancel waits for what becomes of it.
        Workflow(
            "vm.stop",
            (StepDef("stop", bound(_stop), repeatable=True, cancellable=False),),
            overtakes=_overtaken,
            hurries=True,
        ),
        one("vm.pause", "pause", _signal(VM_PAUSE)),
        one("vm.resume", "resume", _signal(VM_RESUME)),
        one("vm.reset", "reset", _signal(VM_RESET)),
        Workflow(
            "vm.delete",
            (
                StepDef("stop", bound(_take_down), repeatable=True, cancellable=False, point_of_no_return=True),
                StepDef("volumes", bound(_drop_volumes), repeatable=True, cancellable=False),
                StepDef("forget", bound(_forget), repeatable=True, cancellable=False),
            ),
            overtakes=_overtaken,
        ),
    ]


def _overtaken(job: Job) -> Sequence[str]:
    """Force waits neither for a move, which may never converge, nor for a guest that was asked to shut down."""
    return ("vm.migrate", "vm.stop") if job.params.get("force") else ()


async def _place(office: Office, ctx: JobContext) -> None:
    """Pick the host, say why, and give it the lease."""
    choice = await office.shelf.place(ctx.params["id"], _first_host)
    ctx.progress(None, f"on {choice.host}: {choice.why}")


def _first_host(found: ForPlacing) -> Choice:
    # A lease that is there is from before a crash: the step comes again.
    return place(found.vm, found.hosts, found.ties, prefer=found.lease.host if found.lease is not None else None)


async def _replace(office: Office, ctx: JobContext) -> None:
    """A stopped VM starts where it was, or on the host that was asked for; elsewhere, once the old one has let go.

    The old one's answer to the release is the proof that nothing of the VM runs there, nor ever will.
    """
    found = await office.shelf.for_placing(ctx.params["id"])
    vm = found.vm
    lease = found.lease or await office.shelf.lease(vm.id)
    choice = choose_start(vm, found.hosts, ctx.params.get("host"), lease.host, found.ties)
    if choice.host != lease.host:
        body = ReleaseVm(vm=vm.id, epoch=lease.epoch, reason=f"starts on {choice.host}")
        await ctx.send(VM_RELEASE, lease.host, body)
        await refuse(office, ctx, vm, lease.epoch)
        lease = await office.shelf.advance(vm.id, choice.host)
    await office.shelf.set_vm_status(vm.id, host=choice.host, placement=choice.why, epoch=lease.epoch)
    ctx.progress(None, f"on {choice.host}: {choice.why}")


async def _volumes(office: Office, ctx: JobContext) -> None:
    """Make the volumes that the VM brought with it; the first one starts with the image's content."""
    vm = await office.shelf.vm(ctx.params["id"])
    image = await image_of(office, vm)
    manifest = image.status.manifest if image is not None else None
    for index, disk in enumerate(vm.spec.disks):
        volume = await office.shelf.volume(disk.volume or "")
        if volume.status.state is VolumeState.READY:
            continue
        pool = await office.shelf.pool(volume.spec.pool)
        starts = index == 0 and manifest is not None and manifest.kind is ImageKind.DISK
        await make_volume(office, ctx, volume, pool, image if starts else None)
        await office.shelf.set_volume_status(
            volume.id, state=VolumeState.READY, size=volume.spec.size, vm=vm.name, reason=""
        )


async def _start(office: Office, ctx: JobContext) -> None:
    vm = await office.shelf.vm(ctx.params["id"])
    if ctx.kind == "vm.create" and not vm.spec.running:
        await office.shelf.set_vm_status(vm.id, state=VmState.STOPPED, reason="created, not started")
        ctx.result = {"host": vm.status.host, "state": VmState.STOPPED, "addresses": addresses(vm)}
        return
    await start_vm(office, ctx, vm.id)
    if STOPPED in ctx.data:
        ctx.result = {**(ctx.result or {}), "stopped": ctx.data[STOPPED]}


async def _stop(office: Office, ctx: JobContext) -> None:
    vm = await office.shelf.vm(ctx.params["id"])
    if vm.status.state in (VmState.DEFINED, VmState.STOPPED):
        ctx.result = {"state": vm.status.state}
        return
    timeout = float(ctx.params.get("timeout", 60.0))
    if vm.status.state is VmState.UNKNOWN and ctx.params.get("force"):
        await _end_unknown(office, ctx, vm)
        return
    body = StopVm(vm=vm.id, force=bool(ctx.params.get("force", False)), timeout=timeout)
    hurrying = asyncio.create_task(_force_when_hurried(ctx, vm.id))
    try:
        report = await ctx.send(VM_STOP, VmTarget(vm.id), body, patience=timeout + 60.0)
    finally:
        hurrying.cancel()
        await asyncio.gather(hurrying, return_exceptions=True)
    await office.shelf.take_report(report)
    ctx.result = {"state": report.state, "reason": report.reason}
    ctx.data[STOPPED] = report.reason


async def _end_unknown(office: Office, ctx: JobContext, vm: Vm) -> None:
    """By the release of its lease: that also ends a QEMU that does not answer, or that its host's journal lost."""
    lease = await _lease_at_rest(office, vm)
    reason = "stopped by force"
    body = ReleaseVm(vm=vm.id, epoch=lease.epoch, reason=reason)
    await ctx.send(VM_RELEASE, lease.host, body)
    await office.shelf.set_vm_status(vm.id, state=VmState.STOPPED, reason=reason, pid=None, guest_agent=False)
    ctx.result = {"state": VmState.STOPPED, "reason": reason}
    ctx.data[STOPPED] = reason


async def _lease_at_rest(office: Office, vm: Vm) -> Lease:
    """The VM's lease. Raises NotFoundError, and ConflictError while it is offered to another host."""
    lease = await office.shelf.lease(vm.id)
    if lease.offered_to is not None:
        raise ConflictError(
            f"VM {vm.name} is on the move", field="vm", value=vm.name, remedy="Wait until it has arrived."
        )
    return lease


async def _force_when_hurried(ctx: JobContext, vm_id: str) -> None:
    """The first command is answered once the second has ended the VM."""
    await ctx.hurried.wait()
    ctx.progress(None, "by force: another job does not wait for the guest")
    await ctx.send(VM_STOP, VmTarget(vm_id), StopVm(vm=vm_id, force=True))


def _signal(command: Command[SignalVm, VmReport]) -> Callable[[Office, JobContext], Awaitable[None]]:
    async def step(office: Office, ctx: JobContext) -> None:
        vm_id = ctx.params["id"]
        report = await ctx.send(command, VmTarget(vm_id), SignalVm(vm=vm_id))
        await office.shelf.take_report(report)
        ctx.result = {"state": report.state}
        if command is VM_RESUME and report.state is VmState.PAUSED:
            raise await _stopped_again(office, vm_id, report.reason)

    return step


async def _stopped_again(office: Office, vm_id: str, reason: str) -> SeraiError:
    """Why a VM that was resumed does not run: the pool that is full, where there is one."""
    vm = await office.shelf.vm(vm_id)
    shelf, disks = office.shelf, vm.spec.disks
    names = {disk.pool or (await shelf.volume(disk.volume or "")).spec.pool for disk in disks}
    pools = [await shelf.pool(name) for name in sorted(names)]
    full = [f"pool {pool.name} on {pool.spec.host}" for pool in pools if pool.status.free < FULL]
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


async def _take_down(office: Office, ctx: JobContext) -> None:
    """End the VM wherever its lease is, and fence it: nothing of it runs when this returns."""
    vm_id = ctx.params["id"]
    vm = await office.shelf.vm(vm_id)
    try:
        lease = await _lease_at_rest(office, vm)
    except NotFoundError:
        return
    body = ReleaseVm(vm=vm_id, epoch=lease.epoch, reason="deleted")
    await ctx.send(VM_RELEASE, lease.host, body, patience=float("inf"))
    await refuse(office, ctx, vm, lease.epoch)


async def _drop_volumes(office: Office, ctx: JobContext) -> None:
    """Delete the volumes that came with the VM; others, and those to keep, only lose it."""
    vm = await office.shelf.vm(ctx.params["id"])
    for disk in vm.spec.disks:
        try:
            volume = await office.shelf.volume(disk.volume or "")
        except NotFoundError:
            continue
        if disk.keep or not await office.shelf.came_with(volume, vm):
            await office.shelf.set_volume_status(volume.id, vm=None)
            continue
        pool = await office.shelf.pool(volume.spec.pool)
        body = DeleteVolume(pool=pool.id, volume=volume.id)
        await ctx.send(VOLUME_DELETE, pool.spec.host, body, patience=float("inf"))
        await office.shelf.delete_volume(volume.id)


async def _forget(office: Office, ctx: JobContext) -> None:
    """The database forgets the VM, its lease and its addresses, and says so."""
    await office.shelf.drop_vm(ctx.params["id"])
    ctx.result = {"deleted": ctx.target}
