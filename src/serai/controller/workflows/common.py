"""What several workflows do with hosts and leases: wait for reports, release, fence at the targets, leave for later.

The actions here are idempotent: a repeated step sends the same commands with the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serai.controller.jobs.workflow import AnyContext, JobContext, NoState
from serai.controller.services import vms
from serai.core.launch import DiskPlan
from serai.core.lease import is_over
from serai.schema.commands.base import BodyT, Command
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.commands.volume import VOLUME_REFUSE, RefuseInitiator
from serai.schema.errors import UnavailableError
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Lease
from serai.schema.resource import Frozen
from serai.schema.vm import Vm
from serai.schema.volume import ExportKind


class VmParams(Frozen):
    vm: VmId


class ForceParams(VmParams):
    force: bool = False


def preempted(params: ForceParams) -> Sequence[str]:
    """Force waits neither for a move, which may never converge, nor for a guest that was asked to shut down."""
    return ("vm.migrate", "vm.stop") if params.force else ()


class AwayParams(Frozen):
    """`away`: names of hosts that were offline when a deletion was asked for by force, and are left out."""

    away: list[HostName]


def say_what_is_left(ctx: JobContext[AwayParams, NoState]) -> None:
    """Show that hosts that are away have yet to delete their part."""
    if away := ctx.params.away:
        ctx.progress(None, f"forgotten here; {', '.join(away)} removes it when it is back: serai host show")


async def release(ctx: AnyContext, lease: Lease, reason: str, patience: float | None = None) -> None:
    """Have the holder give the lease up: the answer is the proof that nothing of the VM runs there, nor ever will.

    An epoch that a fence has ended, before or meanwhile, needs no answer.
    """
    if is_over(lease):
        return
    body = ReleaseVm(vm=lease.vm, epoch=lease.epoch, reason=reason)
    try:
        await ctx.send(VM_RELEASE, lease.host, body, patience=patience)
    except UnavailableError:
        async with ctx.store.read() as view:
            now = await view.leases.need(lease.vm)
        if not is_over(now):
            raise


async def send_or_leave(
    ctx: AnyContext, command: Command[BodyT, Any], host: HostName, body: BodyT, what: str, patience: float = 10.0
) -> None:
    """Send a command that clears up; a host that does not answer does it when it is back."""
    try:
        await ctx.send(command, host, body, patience=patience)
    except UnavailableError as error:
        async with ctx.store.transaction() as tx:
            await tx.leftovers.add(host, command, body, what, error.info.message)


def _refusal(vm: Vm, disk: DiskPlan, epoch: int, host: HostName | None = None) -> RefuseInitiator:
    return RefuseInitiator(pool=disk.pool.id, volume=disk.volume.id, vm=vm.id, epoch=epoch, host=host)


async def _exported(ctx: AnyContext, vm: Vm) -> list[DiskPlan]:
    async with ctx.store.read() as view:
        return [disk for disk in await vms.disks(view, vm) if disk.pool.spec.export is ExportKind.ISCSI]


async def refuse(ctx: AnyContext, vm: Vm, lease: Lease) -> None:
    """Fence all epochs up to the last one that was offered at all of the VM's targets."""
    for disk in await _exported(ctx, vm):
        await ctx.send(VOLUME_REFUSE, disk.pool.spec.host, _refusal(vm, disk, lease.highest))


async def refuse_or_leave(ctx: AnyContext, vm: Vm, epoch: int, host: HostName | None = None) -> None:
    """Fence lease epochs up to this one at all of the VM's targets that answer, and leave it to the others.

    With `host`, this one of that host alone.
    """
    for disk in await _exported(ctx, vm):
        body = _refusal(vm, disk, epoch, host)
        await send_or_leave(ctx, VOLUME_REFUSE, disk.pool.spec.host, body, f"volume {disk.volume.name}")
