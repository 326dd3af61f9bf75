"""`vm.clone`: each of a VM's volumes is copied; the API has written the clone already, stopped."""

from __future__ import annotations

from serai.controller.jobs.workflow import JobContext, NoState, Step, Workflow, written
from serai.controller.services import vms
from serai.controller.workflows import volumes
from serai.controller.workflows.common import VmParams
from serai.core.observed import Event
from serai.schema.ids import VmId


class CloneParams(VmParams):
    """`clone` is the id of the copy, `name` what it was called."""

    name: str
    clone: VmId


Context = JobContext[CloneParams, NoState]


async def _copy(ctx: Context) -> None:
    async with ctx.store.read() as view:
        source, clone = await view.vms.get(ctx.params.vm), await view.vms.get(ctx.params.clone)
    for old_id, new_id in zip(source.spec.volumes, clone.spec.volumes, strict=True):
        await volumes.make(ctx, new_id, clone_of=old_id)
    await ctx.await_reports(clone.id)
    async with ctx.store.transaction() as tx:
        host = (await tx.leases.need(source.id)).host
        await ctx.rights.first(tx, clone.id, host)
        await vms.observe(tx, clone.id, Event.CREATED, f"cloned from {source.name}", host=host, epoch=1)
    ctx.result = {"vm": clone.name, "id": clone.id}


async def _uncopy(ctx: Context) -> None:
    async with ctx.store.read() as view:
        clone = await view.vms.seek(ctx.params.clone)
    if clone is None:
        return
    lines = [await volumes.unmake(ctx, volume_id) for volume_id in clone.spec.volumes]
    async with ctx.store.transaction() as tx:
        await ctx.rights.forget(tx, clone.id)
        await vms.forget(tx, clone.id)
    ctx.progress(None, "; ".join(["taken back", *filter(None, lines)]))


CLONE_VM = Workflow("vm.clone", CloneParams, NoState, (written("vm", _uncopy), Step("copy", _copy, repeatable=True)))
