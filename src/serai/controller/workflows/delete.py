"""`vm.delete`: the VM ends wherever it is, its own volumes go, and the database forgets it."""

from __future__ import annotations

from typing import Any

from serai.controller.jobs.workflow import JobContext, NoState, Step, Workflow
from serai.controller.services import vms
from serai.controller.services.volumes import free
from serai.controller.workflows import volumes
from serai.controller.workflows.common import ForceParams, VmParams, preempted, refuse, release
from serai.core.lease import at_rest

Context = JobContext[VmParams, Any]


async def take_down(ctx: Context) -> None:
    """End the VM wherever its lease is, and fence it: nothing of it runs when this returns."""
    async with ctx.store.read() as view:
        vm, lease = await view.vms.get(ctx.params.vm), await view.leases.get(ctx.params.vm)
    if lease is None:
        return
    await release(ctx, at_rest(lease, vm.name), "deleted", patience=float("inf"))
    await refuse(ctx, vm, lease)


async def drop_volumes(ctx: Context) -> None:
    """Delete the volumes that the VM owns; others, and those to keep, only lose it."""
    async with ctx.store.read() as view:
        vm = await view.vms.get(ctx.params.vm)
    for disk in vm.spec.disks:
        assert disk.volume is not None, "a disk in the store has a volume"
        async with ctx.store.transaction() as tx:
            volume = await tx.volumes.seek(disk.volume)
            stays = volume is not None and (disk.keep or volume.status.owner != vm.id)
            if volume is not None and stays:
                await free(tx, volume, vm)
        if volume is not None and not stays:
            await volumes.remove(ctx, volume.id, patience=float("inf"))


async def forget(ctx: Context) -> None:
    """The database forgets the VM, its lease and its addresses, and says so."""
    async with ctx.store.transaction() as tx:
        await ctx.rights.forget(tx, ctx.params.vm)
        await vms.forget(tx, ctx.params.vm)
    ctx.result = {"deleted": ctx.target}


DELETE_VM = Workflow(
    "vm.delete",
    ForceParams,
    NoState,
    (
        Step("stop", take_down, repeatable=True, cancellable=False, point_of_no_return=True),
        Step("volumes", drop_volumes, repeatable=True, cancellable=False),
        Step("forget", forget, repeatable=True, cancellable=False),
    ),
    preempts=preempted,
)
