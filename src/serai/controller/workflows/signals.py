"""`vm.pause`, `vm.resume`, `vm.reset`: one command each to the VM's host."""

from __future__ import annotations

from serai.controller.commands import VmTarget
from serai.controller.hosts import observed
from serai.controller.hosts.observed import FULL
from serai.controller.jobs.workflow import AnyContext, JobContext, NoState, Step, Workflow
from serai.controller.services import vms
from serai.controller.workflows.common import VmParams
from serai.schema.commands.base import Command
from serai.schema.commands.vm import VM_PAUSE, VM_RESET, VM_RESUME, SignalVm
from serai.schema.errors import CapacityError, ConflictError, SeraiError
from serai.schema.ids import VmId
from serai.schema.vm import VmReport, VmState


async def send_signal(ctx: AnyContext, command: Command[SignalVm, VmReport], vm_id: VmId) -> VmReport:
    """Send it to the VM's host, and write what it answers."""
    report = await ctx.send(command, VmTarget(vm_id), SignalVm(vm=vm_id))
    async with ctx.store.transaction() as tx:
        await observed.apply(tx, ctx.rights, report)
    return report


def _signal(step: str, command: Command[SignalVm, VmReport]) -> Workflow[VmParams, NoState]:
    async def run(ctx: JobContext[VmParams, NoState]) -> None:
        report = await send_signal(ctx, command, ctx.params.vm)
        ctx.result = {"state": report.state}
        if command is VM_RESUME and report.state is VmState.PAUSED:
            raise await _stopped_again(ctx, report)

    return Workflow(f"vm.{step}", VmParams, NoState, (Step(step, run, repeatable=True),))


async def _stopped_again(ctx: AnyContext, report: VmReport) -> SeraiError:
    """Why a VM that was resumed does not run: the pool that is full, where there is one."""
    async with ctx.store.read() as view:
        vm = await view.vms.get(report.vm)
        pools = {disk.pool.name: disk.pool for disk in await vms.disks(view, vm)}
    full = [f"pool {name} on {pool.spec.host}" for name, pool in sorted(pools.items()) if pool.status.free < FULL]
    if full:
        return CapacityError(
            f"VM {vm.name} stopped again at once: no room is left in {', '.join(full)}",
            field="state",
            value=VmState.PAUSED,
            remedy=f"Make room there, then: serai vm resume {vm.name}",
        )
    return ConflictError(
        f"VM {vm.name} stopped again at once: {report.reason}",
        field="state",
        value=VmState.PAUSED,
        remedy="Look at the pools of its disks: serai pool list.",
    )


PAUSE_VM = _signal("pause", VM_PAUSE)
RESUME_VM = _signal("resume", VM_RESUME)
RESET_VM = _signal("reset", VM_RESET)
