"""`vm.stop`: the guest is asked, then ended by force; a VM that nobody answers for ends with its lease."""

from __future__ import annotations

import asyncio
from typing import Any

from serai.controller.commands import VmTarget
from serai.controller.hosts import observed
from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow
from serai.controller.services import vms
from serai.controller.workflows.common import ForceParams, preempted, release
from serai.core.lease import at_rest, is_over
from serai.core.observed import Event
from serai.schema.commands.vm import VM_STOP, StopVm
from serai.schema.ids import VmId
from serai.schema.lease import Lease
from serai.schema.vm import Vm, VmState

BY_RELEASE = (VmState.MIGRATING, VmState.UNKNOWN, VmState.STARTING)
"""States in which force stops a VM by the release of its lease: no job of a move or a start is at work, and its host
may never have heard of it, or wait for a verdict that never comes.
"""


class StopParams(ForceParams):
    """`timeout`: seconds that the guest gets before it is stopped by force."""

    timeout: float = 60.0


Context = JobContext[StopParams, Any]


async def stop(ctx: Context) -> None:
    """Stop the VM, unless it is down."""
    async with ctx.store.read() as view:
        vm, lease = await view.vms.get(ctx.params.vm), await view.leases.get(ctx.params.vm)
    if vm.status.state in (VmState.DEFINED, VmState.STOPPED):
        ctx.result = {"state": vm.status.state}
        return
    if lease is not None and is_over(lease):
        await _end_by_release(ctx, vm, lease, "its host was fenced")
        return
    if lease is not None and vm.status.state in BY_RELEASE and ctx.params.force:
        await _end_by_release(ctx, vm, lease, "stopped by force")
        return
    body = StopVm(vm=vm.id, force=ctx.params.force, timeout=ctx.params.timeout)
    expediting = asyncio.create_task(_force_when_expedited(ctx, vm.id))
    try:
        report = await ctx.send(VM_STOP, VmTarget(vm.id), body, patience=ctx.params.timeout + 60.0)
    finally:
        expediting.cancel()
        await asyncio.gather(expediting, return_exceptions=True)
    async with ctx.store.transaction() as tx:
        await observed.apply(tx, ctx.rights, report)
    ctx.result = {"state": report.state, "reason": report.reason}


async def _end_by_release(ctx: AnyContext, vm: Vm, lease: Lease, reason: str) -> None:
    """That also ends a QEMU that does not answer, that its host's journal lost, or that waits for the verdict of a
    move. An epoch that a fence has ended needs no host.
    """
    await release(ctx, at_rest(lease, vm.name), reason)
    async with ctx.store.transaction() as tx:
        await vms.observe(tx, vm.id, Event.RELEASED, reason)
    ctx.result = {"state": VmState.STOPPED, "reason": reason}


async def _force_when_expedited(ctx: AnyContext, vm_id: VmId) -> None:
    """The first command is answered once the second has ended the VM."""
    await ctx.expedited.wait()
    ctx.progress(None, "by force: another job does not wait for the guest")
    await ctx.send(VM_STOP, VmTarget(vm_id), StopVm(vm=vm_id, force=True))


# The guest has been asked, and cannot be asked back: a cancel waits for what becomes of it.
STOP_VM = Workflow(
    "vm.stop",
    StopParams,
    NoState,
    (Step("stop", stop, repeatable=True, cancellable=False),),
    preempts=preempted,
    expedites=True,
)
