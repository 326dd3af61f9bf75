"""`vm.edit`: what applies live is applied live; what needs a restart is said and shown as pending.

An edit that fails, or is cancelled, is taken back: the spec and what goes with it, then what the VM's host had applied,
then the volumes that were made. What cannot be taken back from a VM that runs is shown as pending, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from serai.controller.commands import VmTarget
from serai.controller.jobs.workflow import AnyContext, JobContext, Step, Workflow, written
from serai.controller.services import edits, vms
from serai.controller.services.volumes import free
from serai.controller.workflows import volumes
from serai.controller.workflows.common import VmParams
from serai.controller.workflows.launches import launch_body
from serai.core.migration import PENDING
from serai.schema.commands.vm import VM_CONFIGURE, ConfigureVm
from serai.schema.errors import SeraiError, UnavailableError
from serai.schema.ids import VmId
from serai.schema.resource import Condition
from serai.schema.vm import Vm, VmState


class EditParams(VmParams):
    """`changes`: the given fields, without user-data."""

    changes: dict[str, Any]


Context = JobContext[EditParams, edits.EditState]


async def _make_new_volumes(ctx: Context) -> None:
    async with ctx.store.read() as view:
        vm = await view.vms.get(ctx.params.vm)
    for volume_id in vm.spec.volumes:
        await volumes.make(ctx, volume_id)


async def _apply(ctx: Context) -> None:
    ctx.result = await apply_live(ctx, ctx.params.vm, lambda: ctx.save(told=True))
    # What there was before may hold secrets, and is not needed any more.
    ctx.remember(changes={})


async def _take_back(ctx: Context) -> None:
    """Undo of an edit: the store first, then the VM if it may have heard of it, then the volumes that were made."""
    vm_id, memory = ctx.params.vm, ctx.state
    stays = memory.stays
    if stays is None:
        async with ctx.store.transaction() as tx:
            stays = await edits.take_back_vm(tx, vm_id, memory.changes)
        await ctx.save(stays=stays)
    remarks = [f"stays: {', '.join(stays)}"] if stays else []
    async with ctx.store.read() as view:
        vm = await view.vms.get(vm_id)
    pending: list[str] = []
    if memory.told or vm.status.running_generation > memory.generation:
        pending = await _untell(ctx, vm_id)
        remarks += [f"until the VM restarts: {line}" for line in pending]
    if "disks" in memory.changes and not any(stay.startswith("disks ") for stay in stays):
        remarks += await _give_up_volumes(ctx, vm, open_still=bool(pending))
    ctx.progress(None, "; ".join(["taken back", *remarks]))
    ctx.remember(changes={})


async def _untell(ctx: Context, vm_id: VmId) -> list[str]:
    """Bring a VM that runs back to its spec; returns what cannot be. Its host's silence is waited out."""
    try:
        answer = await apply_live(ctx, vm_id, lambda: ctx.save(told=True))
    except UnavailableError:
        raise
    except SeraiError as error:
        line = f"its host may have applied some of an edit that failed, and does not take it back: {error.info.message}"
        async with ctx.store.transaction() as tx:
            await vms.set_pending(tx, vm_id, [Condition(type=PENDING, message=line)])
        return [line]
    return list(answer["pending"])


async def _give_up_volumes(ctx: Context, vm: Vm, *, open_still: bool) -> list[str]:
    """The edit's volumes: those made for it go, those that were there before are free again."""
    async with ctx.store.transaction() as tx:
        if open_still:
            # QEMU may have them open: they stay the VM's until it restarts, as those of removed disks do.
            kept = [(await tx.volumes.get(one)).name for one in (*ctx.state.made, *ctx.state.taken)]
            return [f"volume {name} is nobody's once the VM has restarted" for name in kept]
        for volume_id in ctx.state.taken:
            volume = await tx.volumes.get(volume_id)
            if volume.status.vm == vm.id:
                await free(tx, volume, vm)
    return [line for one in ctx.state.made if (line := await volumes.unmake(ctx, one))]


async def apply_live(
    ctx: AnyContext, vm_id: VmId, telling: Callable[[], Awaitable[None]] | None = None
) -> dict[str, Any]:
    """Send the VM's new launch to its agent, and show what waits for a restart. Returns what was applied, and what not.

    A VM that is down is not told: it starts with all of it. `telling` is awaited right before one that is up is told.
    """
    async with ctx.store.transaction() as tx:
        vm = await tx.vms.get(vm_id)
        if vm.status.state not in (VmState.RUNNING, VmState.PAUSED) or vm.status.host is None:
            await vms.set_pending(tx, vm_id)
            return {"applied": [], "pending": [], "note": "the VM is not running: all applies when it starts"}
        lease, parts = await tx.leases.need(vm_id), await vms.parts(tx, vm_id)
        host = await tx.hosts.need(lease.host)
    body = ConfigureVm(**dict(await launch_body(ctx, parts, host, lease.epoch)))
    if telling is not None:
        await telling()
    # The launch holds secrets, and is good for that host and epoch alone.
    holder = VmTarget(vm_id, host.name, lease.epoch)
    answer = await ctx.send(VM_CONFIGURE, holder, body, generation=vm.generation)
    pending = [Condition(type=PENDING, message=line, undo=answer.undo.get(line, "")) for line in answer.pending]
    async with ctx.store.transaction() as tx:
        await vms.set_pending(tx, vm_id, pending)
    return {"applied": answer.applied, "pending": answer.pending}


EDIT_VM = Workflow(
    "vm.edit",
    EditParams,
    edits.EditState,
    (
        written("spec", _take_back),
        Step("volumes", _make_new_volumes, repeatable=True),
        Step("apply", _apply, repeatable=True),
    ),
)
