"""`vm.create`: a new VM gets its host and its volumes, and starts if it is to run."""

from __future__ import annotations

from serai.controller.jobs.workflow import JobContext, NoState, Step, Workflow
from serai.controller.services import capacity, vms
from serai.controller.workflows import volumes
from serai.controller.workflows.common import VmParams
from serai.controller.workflows.delete import drop_volumes, forget, take_down
from serai.controller.workflows.start import addresses, start_vm
from serai.core.observed import Event
from serai.core.placement import place
from serai.schema.image import ImageKind
from serai.schema.vm import VmState

Context = JobContext[VmParams, NoState]


async def _place(ctx: Context) -> None:
    """Pick the host, say why, and give it the lease."""
    vm_id = ctx.params.vm
    await ctx.await_reports(vm_id)
    async with ctx.store.transaction() as tx:
        vm, lease = await tx.vms.get(vm_id), await tx.leases.get(vm_id)
        hosts, ties = await capacity.for_placing(tx, vm, starts=vm.spec.running)
        # A lease that is there is from before a crash: the step comes again.
        choice = place(vm, hosts, ties, prefer=None if lease is None else lease.host)
        await ctx.rights.first(tx, vm_id, choice.host)
        facts = {"host": choice.host, "epoch": 1, "placement": choice.why, "addresses": addresses(vm)}
        await vms.note(tx, vm_id, **facts)
    ctx.progress(None, f"on {choice.host}: {choice.why}")


async def _make_volumes(ctx: Context) -> None:
    """Make the volumes that the VM brought with it; the first one starts with a disk image's content."""
    async with ctx.store.read() as view:
        vm = await view.vms.get(ctx.params.vm)
        image = None if vm.spec.image is None else await view.images.get(vm.spec.image)
    manifest = None if image is None else image.status.manifest
    content = image if manifest is not None and manifest.kind is ImageKind.DISK else None
    for index, volume_id in enumerate(vm.spec.volumes):
        await volumes.make(ctx, volume_id, image=content if index == 0 else None)


async def _start(ctx: Context) -> None:
    async with ctx.store.read() as view:
        vm = await view.vms.get(ctx.params.vm)
    if vm.spec.running:
        await start_vm(ctx)
        return
    async with ctx.store.transaction() as tx:
        await vms.observe(tx, vm.id, Event.CREATED, "created, not started")
    ctx.result = {"host": vm.status.host, "state": VmState.STOPPED, "addresses": addresses(vm)}


CREATE_VM = Workflow(
    "vm.create",
    VmParams,
    NoState,
    (
        Step("place", _place, undo=forget, repeatable=True),
        Step("volumes", _make_volumes, undo=drop_volumes, repeatable=True),
        Step("start", _start, undo=take_down, repeatable=True),
    ),
)
