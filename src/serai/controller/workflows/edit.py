"""`vm.edit` and `vm.clone`: what applies live is applied live; what needs a restart is said and shown as pending."""

from __future__ import annotations

from typing import Any

from serai.controller.jobs import JobContext, StepDef, VmTarget, Workflow
from serai.controller.workflows.common import Office, make_launch
from serai.core.migration import PENDING
from serai.schema.messages import Kind, VmConfigure, VmConfigured, VolumeDrop, VolumeMake
from serai.schema.resource import Condition
from serai.schema.vm import VmState
from serai.schema.volume import VolumeState


def workflows(office: Office) -> list[Workflow]:
    """Both kinds."""

    async def volumes(ctx: JobContext) -> None:
        await _make_new_volumes(office, ctx)

    async def apply(ctx: JobContext) -> None:
        await _apply(office, ctx)

    async def copy(ctx: JobContext) -> None:
        await _copy(office, ctx)

    async def uncopy(ctx: JobContext) -> None:
        await _uncopy(office, ctx)

    return [
        Workflow("vm.edit", (StepDef("volumes", volumes, repeatable=True), StepDef("apply", apply, repeatable=True))),
        Workflow("vm.clone", (StepDef("copy", copy, undo=uncopy, repeatable=True),)),
    ]


async def _make_new_volumes(office: Office, ctx: JobContext) -> None:
    vm = await office.shelf.vm(ctx.params["id"])
    for disk in vm.spec.disks:
        volume = await office.shelf.volume(disk.volume or "")
        if volume.status.state is VolumeState.READY:
            continue
        pool = await office.shelf.pool(volume.spec.pool)
        body = VolumeMake(pool=pool.id, volume=volume.id, size=volume.spec.size)
        await ctx.command(Kind.VOLUME_MAKE, pool.spec.host, f"volume/{volume.id}", body, deadline=600.0)
        await office.shelf.set_volume_status(
            volume.id, state=VolumeState.READY, size=volume.spec.size, vm=vm.name, reason=""
        )


async def _apply(office: Office, ctx: JobContext) -> None:
    ctx.result = await apply_live(office, ctx, ctx.params["id"])


async def apply_live(office: Office, ctx: JobContext, vm_id: str) -> dict[str, Any]:
    """Send the VM's new launch to its agent, and show what waits for a restart. Returns what was applied, and what not.

    A VM that is down is not told: it starts with all of it.
    """
    vm = await office.shelf.vm(vm_id)
    if vm.status.state not in (VmState.RUNNING, VmState.PAUSED) or vm.status.host is None:
        await office.shelf.set_vm_conditions(vm.id, PENDING, [])
        await office.shelf.release_removed_disks(vm.id)
        return {"applied": [], "pending": [], "note": "the VM is not running: all applies when it starts"}
    parts = await office.shelf.for_launch(vm.id)
    launch = await make_launch(office, ctx, parts, parts.lease.epoch)
    body = VmConfigure(
        launch=launch,
        restart=vm.spec.restart,
        autostart=vm.spec.autostart,
        autostart_order=vm.spec.autostart_order,
    )
    # The launch holds secrets, and is good for that host and epoch alone.
    holder = VmTarget(vm.id, parts.host.name, parts.lease.epoch)
    answer: VmConfigured = await ctx.command(
        Kind.VM_CONFIGURE, holder, f"vm/{vm.id}", body, generation=vm.generation, deadline=60.0
    )
    pending = [Condition(type=PENDING, message=line) for line in answer.pending]
    await office.shelf.set_vm_conditions(vm.id, PENDING, pending)
    if not pending:
        # What is pending may be a disk that QEMU still has open: then it is the VM's until the next start.
        await office.shelf.release_removed_disks(vm.id)
    return {"applied": answer.applied, "pending": answer.pending}


async def _copy(office: Office, ctx: JobContext) -> None:
    """Copy each of the VM's volumes to the clone's own; the API has written the clone already, stopped."""
    source = await office.shelf.vm(ctx.params["id"])
    clone = await office.shelf.vm(ctx.params["clone"])
    for old_disk, new_disk in zip(source.spec.disks, clone.spec.disks, strict=True):
        old, new = await office.shelf.volume(old_disk.volume or ""), await office.shelf.volume(new_disk.volume or "")
        if new.status.state is VolumeState.READY:
            continue
        pool = await office.shelf.pool(new.spec.pool)
        body = VolumeMake(pool=pool.id, volume=new.id, size=new.spec.size, clone_of=old.id)
        await ctx.command(Kind.VOLUME_MAKE, pool.spec.host, f"volume/{new.id}", body, deadline=3600.0)
        await office.shelf.set_volume_status(
            new.id, state=VolumeState.READY, size=new.spec.size, vm=clone.name, reason=""
        )
    await office.shelf.ensure_lease(clone.id, source.status.host or "")
    await office.shelf.set_vm_status(
        clone.id, state=VmState.STOPPED, host=source.status.host, epoch=1, reason=f"cloned from {source.name}"
    )
    ctx.result = {"vm": clone.name, "id": clone.id}


async def _uncopy(office: Office, ctx: JobContext) -> None:
    clone = await office.shelf.vm(ctx.params["clone"])
    for disk in clone.spec.disks:
        volume = await office.shelf.volume(disk.volume or "")
        pool = await office.shelf.pool(volume.spec.pool)
        body = VolumeDrop(pool=pool.id, volume=volume.id)
        await ctx.command(Kind.VOLUME_DROP, pool.spec.host, f"volume/{volume.id}", body)
        await office.shelf.delete_volume(volume.id)
    await office.shelf.drop_vm(clone.id)
