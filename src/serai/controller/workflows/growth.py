"""`volume.edit`: a volume grows, and the guest that uses it is told.

Where the volume is exported, the target takes it off line for a moment, and what the guest asks of it just then would
fail. So the VM's processors stand still meanwhile, with nothing in flight. Whether it was this job that stopped them is
written down before it does: a controller that takes the job up after a crash lets them go on.

When it fails, the host is asked how large the volume is now. What has not grown goes back to its old size; what has
grown stays, since volumes do not shrink, and says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from serai.controller.jobs.workflow import JobContext, Step, Workflow, target_lock, written
from serai.controller.services import edits, resources
from serai.controller.workflows.edit import apply_live
from serai.controller.workflows.signals import send_signal
from serai.schema.commands.vm import VM_PAUSE, VM_RESUME
from serai.schema.commands.volume import VOLUME_GROW, VOLUME_MEASURE, GrowVolume, MeasureVolume
from serai.schema.errors import ConflictError, SeraiError, UnavailableError
from serai.schema.ids import VmId, VolumeId
from serai.schema.job import Job
from serai.schema.resource import Frozen
from serai.schema.vm import VmState
from serai.schema.volume import ExportKind, Pool, Volume


class GrowParams(Frozen):
    """`vm`: the one that has the volume."""

    volume: VolumeId
    vm: VmId | None = None
    size: int | None = None


class GrowState(Frozen):
    changes: dict[str, list[Any]] = Field(default_factory=dict)
    still: bool | None = None
    """The VM was running, and stands still because of this job; none: that was not looked at yet."""
    asked: bool = False
    """The host was asked to grow the volume."""


Context = JobContext[GrowParams, GrowState]


def _locks(job: Job, params: GrowParams) -> Sequence[str]:
    """The VM's too: it must not move, nor change, while a disk of it grows."""
    return (*target_lock(job, params), *(() if params.vm is None else (f"vm/{params.vm}",)))


async def _grow(ctx: Context) -> None:
    vm_id = ctx.params.vm
    async with ctx.store.read() as view:
        volume = await view.volumes.get(ctx.params.volume)
        pool = await view.pools.get(volume.spec.pool)
    grown = {"size": volume.spec.size}
    if volume.spec.size > volume.status.size or volume.status.reason or ctx.state.still is not None:
        if vm_id is None:
            await _grow_on_host(ctx, volume, pool)
        else:
            await _grow_under(ctx, vm_id, volume, pool)
        async with ctx.store.transaction() as tx:
            await resources.set_status(tx, tx.volumes, volume.id, size=volume.spec.size, reason="")
    ctx.result = grown if vm_id is None else {**grown, **await apply_live(ctx, vm_id)}


async def _grow_under(ctx: Context, vm_id: VmId, volume: Volume, pool: Pool) -> None:
    still = ctx.state.still
    if still is None:
        async with ctx.store.read() as view:
            running = (await view.vms.get(vm_id)).status.state is VmState.RUNNING
        still = running and pool.spec.export is ExportKind.ISCSI
        await ctx.save(still=still)
    if still:
        await send_signal(ctx, VM_PAUSE, vm_id)
    try:
        await _grow_on_host(ctx, volume, pool)
    finally:
        if still:
            await send_signal(ctx, VM_RESUME, vm_id)


async def _grow_on_host(ctx: Context, volume: Volume, pool: Pool) -> None:
    await ctx.save(asked=True)
    body = GrowVolume(pool=pool.id, volume=volume.id, size=volume.spec.size)
    await ctx.send(VOLUME_GROW, pool.spec.host, body)


async def _take_back(ctx: Context) -> None:
    if ctx.params.vm is not None and ctx.state.still:
        # A VM that ended meanwhile refuses: it stands still no more.
        with contextlib.suppress(ConflictError):
            await send_signal(ctx, VM_RESUME, ctx.params.vm)
    async with ctx.store.read() as view:
        volume = await view.volumes.get(ctx.params.volume)
        pool = await view.pools.get(volume.spec.pool)
    remarks = []
    real: int | None = None
    if ctx.state.asked:
        try:
            answer = await ctx.send(VOLUME_MEASURE, pool.spec.host, MeasureVolume(pool=pool.id, volume=volume.id))
            real = answer.size
        except UnavailableError:
            raise
        except SeraiError as error:
            remarks.append(f"whether it has grown is not known: {error.info.message}")
    async with ctx.store.transaction() as tx:
        stays = await edits.take_back_volume(tx, volume.id, ctx.state.changes, real)
    ctx.progress(None, "; ".join(["taken back", *(f"stays: {line}" for line in stays), *remarks]))


EDIT_VOLUME = Workflow(
    "volume.edit",
    GrowParams,
    GrowState,
    # Not to be cancelled: left half-way, the VM would stand still.
    (written("volume", _take_back), Step("grow", _grow, repeatable=True, cancellable=False)),
    locks=_locks,
)
