"""`volume.edit`: a volume grows, and the guest that uses it is told.

Where the volume is exported, the target takes it off line for a moment, and what the guest asks of it just then would
fail. So the VM's processors stand still meanwhile, with nothing in flight. Whether it was this job that stopped them is
written down before it does: a controller that takes the job up after a crash lets them go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from serai.controller.jobs import JobContext, StepDef, VmTarget, Workflow, target_lock
from serai.controller.workflows.common import Office
from serai.controller.workflows.edit import apply_live
from serai.schema.job import Job
from serai.schema.messages import Kind, VmSignal, VolumeGrow
from serai.schema.vm import VmReport, VmState
from serai.schema.volume import ExportKind, Pool, Volume

STILL = "still"
"""Key in the job's data: the VM was running, and stands still because of this job."""


def workflows(office: Office) -> list[Workflow]:
    """The one kind of this file."""

    async def grow(ctx: JobContext) -> None:
        await _grow(office, ctx)

    # Not to be cancelled: left half-way, the VM would stand still.
    return [Workflow("volume.edit", (StepDef("grow", grow, repeatable=True, cancellable=False),), _locks)]


def _locks(job: Job) -> Sequence[str]:
    """The VM's too: it must not move, nor change, while a disk of it grows."""
    vm = job.params.get("vm")
    return (*target_lock(job), *(() if vm is None else (f"vm/{vm}",)))


async def _grow(office: Office, ctx: JobContext) -> None:
    volume = await office.shelf.volume(ctx.params["id"])
    vm_id = ctx.params.get("vm")
    ctx.result = {"size": volume.spec.size}
    if volume.spec.size > volume.status.size or STILL in ctx.data:
        pool = await office.shelf.pool(volume.spec.pool)
        if vm_id is None:
            await _grow_on_host(ctx, volume, pool)
        else:
            await _grow_under(office, ctx, vm_id, volume, pool)
        await office.shelf.set_volume_status(volume.id, size=volume.spec.size)
    if vm_id is not None:
        ctx.result = {**ctx.result, **await apply_live(office, ctx, vm_id)}


async def _grow_under(office: Office, ctx: JobContext, vm_id: str, volume: Volume, pool: Pool) -> None:
    if STILL not in ctx.data:
        running = (await office.shelf.vm(vm_id)).status.state is VmState.RUNNING
        ctx.data[STILL] = running and pool.spec.export is ExportKind.ISCSI
        await ctx.save()
    still = bool(ctx.data[STILL])
    if still:
        await _signal(office, ctx, Kind.VM_PAUSE, vm_id)
    try:
        await _grow_on_host(ctx, volume, pool)
    finally:
        if still:
            await _signal(office, ctx, Kind.VM_RESUME, vm_id)


async def _grow_on_host(ctx: JobContext, volume: Volume, pool: Pool) -> None:
    body = VolumeGrow(pool=pool.id, volume=volume.id, size=volume.spec.size)
    await ctx.command(Kind.VOLUME_GROW, pool.spec.host, f"volume/{volume.id}", body)


async def _signal(office: Office, ctx: JobContext, kind: Kind, vm_id: str) -> None:
    report: VmReport = await ctx.command(kind, VmTarget(vm_id), f"vm/{vm_id}", VmSignal(vm=vm_id))
    await office.shelf.take_report(report)
