"""`vm.edit` and `vm.clone`: what applies live is applied live; what needs a restart is said and shown as pending.

An edit that fails, or is cancelled, is taken back: the spec and what goes with it, then what the VM's host had applied,
then the volumes that were made. What cannot be taken back from a VM that runs is shown as pending, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from serai.controller.commands import VmTarget
from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow, written
from serai.controller.services import edits
from serai.controller.workflows.common import Office, await_reports, document, facts_of, make_launch
from serai.controller.workflows.shelf import FREE
from serai.core.migration import PENDING
from serai.schema.commands.vm import VM_CONFIGURE, ConfigureVm
from serai.schema.commands.volume import VOLUME_CREATE, VOLUME_DELETE, CreateVolume, DeleteVolume
from serai.schema.errors import NotFoundError, SeraiError, UnavailableError
from serai.schema.ids import VmId, VolumeId
from serai.schema.resource import Condition, Frozen
from serai.schema.vm import Vm, VmState
from serai.schema.volume import VolumeState


class EditParams(Frozen):
    """`changes`: the given fields, without user-data."""

    vm: VmId
    changes: dict[str, Any]


class CloneParams(Frozen):
    """`clone` is the id of the copy, `name` what it was called."""

    vm: VmId
    name: str
    clone: VmId


EditContext = JobContext[EditParams, edits.EditState]
CloneContext = JobContext[CloneParams, NoState]


async def _make_new_volumes(office: Office, ctx: EditContext) -> None:
    vm = await office.shelf.vm(ctx.params.vm)
    for volume_id in vm.spec.volumes:
        volume = await office.shelf.volume(volume_id)
        if volume.status.state is VolumeState.READY:
            continue
        pool = await office.shelf.pool(volume.spec.pool)
        body = CreateVolume(pool=pool.id, volume=volume.id, size=volume.spec.size)
        await ctx.send(VOLUME_CREATE, pool.spec.host, body)
        await office.shelf.set_volume_status(volume.id, state=VolumeState.READY, size=volume.spec.size, reason="")


async def _apply(office: Office, ctx: EditContext) -> None:
    ctx.result = await apply_live(office, ctx, ctx.params.vm, lambda: ctx.save(told=True))
    # What there was before may hold secrets, and is not needed any more.
    ctx.remember(changes={})


async def _take_back(office: Office, ctx: EditContext) -> None:
    """Undo of an edit: the store first, then the VM if it may have heard of it, then the volumes that were made."""
    vm_id, memory = ctx.params.vm, ctx.state
    stays = memory.stays
    if stays is None:
        async with ctx.store.transaction() as tx:
            stays = await edits.take_back_vm(tx, vm_id, memory.changes)
        await ctx.save(stays=stays)
    remarks = [f"stays: {', '.join(stays)}"] if stays else []
    vm = await office.shelf.vm(vm_id)
    pending: list[str] = []
    if memory.told or vm.status.running_generation > memory.generation:
        pending = await _untell(office, ctx, vm_id)
        remarks += [f"until the VM restarts: {line}" for line in pending]
    if "disks" in memory.changes and not any(stay.startswith("disks ") for stay in stays):
        remarks += await _give_up_volumes(office, ctx, vm, open_still=bool(pending))
    ctx.progress(None, "; ".join(["taken back", *remarks]))
    ctx.remember(changes={})


async def _untell(office: Office, ctx: EditContext, vm_id: VmId) -> list[str]:
    """Bring a VM that runs back to its spec; returns what cannot be. Its host's silence is waited out."""
    try:
        answer = await apply_live(office, ctx, vm_id, lambda: ctx.save(told=True))
    except UnavailableError:
        raise
    except SeraiError as error:
        line = f"its host may have applied some of an edit that failed, and does not take it back: {error.info.message}"
        await office.shelf.set_vm_conditions(vm_id, PENDING, [Condition(type=PENDING, message=line)])
        return [line]
    return list(answer["pending"])


async def _give_up_volumes(office: Office, ctx: EditContext, vm: Vm, *, open_still: bool) -> list[str]:
    """The edit's volumes: those made for it go, those that were there before are free again."""
    if open_still:
        # QEMU may have them open: they stay the VM's until it restarts, as those of removed disks do.
        kept = [(await office.shelf.volume(one)).name for one in (*ctx.state.made, *ctx.state.taken)]
        return [f"volume {name} is nobody's once the VM has restarted" for name in kept]
    for volume_id in ctx.state.taken:
        await office.shelf.let_go(volume_id, vm)
    return [line for one in ctx.state.made if (line := await unmake_volume(office, ctx, one))]


async def unmake_volume(office: Office, ctx: AnyContext, volume_id: VolumeId) -> str:
    """Remove a volume that a job had made, or begun to; a host that cannot be asked keeps it, and the text says so."""
    try:
        volume = await office.shelf.volume(volume_id)
    except NotFoundError:
        return ""
    pool = await office.shelf.pool(volume.spec.pool)
    try:
        facts_of(await office.shelf.host(pool.spec.host))
        body = DeleteVolume(pool=pool.id, volume=volume.id)
        await ctx.send(VOLUME_DELETE, pool.spec.host, body)
    except SeraiError as error:
        reason = f"not removed: {error.info.message}. Delete it when its host is back"
        await office.shelf.set_volume_status(volume.id, state=VolumeState.FAILED, reason=reason, **FREE)
        return f"volume {volume.name} could not be removed ({error.info.message}): serai volume delete {volume.name}"
    await office.shelf.delete_volume(volume.id)
    return ""


async def apply_live(
    office: Office, ctx: AnyContext, vm_id: VmId, telling: Callable[[], Awaitable[None]] | None = None
) -> dict[str, Any]:
    """Send the VM's new launch to its agent, and show what waits for a restart. Returns what was applied, and what not.

    A VM that is down is not told: it starts with all of it. `telling` is awaited right before one that is up is told.
    """
    vm = await office.shelf.vm(vm_id)
    if vm.status.state not in (VmState.RUNNING, VmState.PAUSED) or vm.status.host is None:
        await office.shelf.set_vm_conditions(vm.id, PENDING, [])
        await office.shelf.release_removed_disks(vm.id)
        return {"applied": [], "pending": [], "note": "the VM is not running: all applies when it starts"}
    parts = await office.shelf.for_launch(vm.id)
    launch = await make_launch(office, ctx, parts, parts.lease.epoch)
    body = ConfigureVm(
        launch=launch,
        document=document(parts),
        restart=vm.spec.restart,
        autostart=vm.spec.autostart,
        autostart_order=vm.spec.autostart_order,
    )
    if telling is not None:
        await telling()
    # The launch holds secrets, and is good for that host and epoch alone.
    holder = VmTarget(vm.id, parts.host.name, parts.lease.epoch)
    answer = await ctx.send(VM_CONFIGURE, holder, body, generation=vm.generation)
    pending = [Condition(type=PENDING, message=line, undo=answer.undo.get(line, "")) for line in answer.pending]
    await office.shelf.set_vm_conditions(vm.id, PENDING, pending)
    if not pending:
        # What is pending may be a disk that QEMU still has open: then it is the VM's until the next start.
        await office.shelf.release_removed_disks(vm.id)
    return {"applied": answer.applied, "pending": answer.pending}


async def _copy(office: Office, ctx: CloneContext) -> None:
    """Copy each of the VM's volumes to the clone's own; the API has written the clone already, stopped."""
    source = await office.shelf.vm(ctx.params.vm)
    clone = await office.shelf.vm(ctx.params.clone)
    for old_id, new_id in zip(source.spec.volumes, clone.spec.volumes, strict=True):
        old, new = await office.shelf.volume(old_id), await office.shelf.volume(new_id)
        if new.status.state is VolumeState.READY:
            continue
        pool = await office.shelf.pool(new.spec.pool)
        body = CreateVolume(pool=pool.id, volume=new.id, size=new.spec.size, clone_of=old.id)
        await ctx.send(VOLUME_CREATE, pool.spec.host, body, patience=3600.0)
        await office.shelf.set_volume_status(new.id, state=VolumeState.READY, size=new.spec.size, reason="")
    await await_reports(office, ctx, clone.id)
    host = (await office.shelf.lease(source.id)).host
    await office.shelf.ensure_lease(clone.id, host)
    reason = f"cloned from {source.name}"
    await office.shelf.set_vm_status(clone.id, state=VmState.STOPPED, host=host, epoch=1, reason=reason)
    ctx.result = {"vm": clone.name, "id": clone.id}


async def _uncopy(office: Office, ctx: CloneContext) -> None:
    try:
        clone = await office.shelf.vm(ctx.params.clone)
    except NotFoundError:
        return
    lines = [await unmake_volume(office, ctx, volume_id) for volume_id in clone.spec.volumes]
    await office.shelf.drop_vm(clone.id)
    ctx.progress(None, "; ".join(["taken back", *filter(None, lines)]))


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
CLONE_VM = Workflow("vm.clone", CloneParams, NoState, (written("vm", _uncopy), Step("copy", _copy, repeatable=True)))
