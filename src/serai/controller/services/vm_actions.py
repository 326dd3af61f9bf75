"""What is asked of a VM that there is: to run, to stop, to move, to go. All is checked before anything is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from serai.controller.jobs.workflow import NoState, Workflow
from serai.controller.services import capacity
from serai.controller.services.checks import need_disks, need_holder, refuse_while
from serai.controller.services.requester import Action, Requester
from serai.controller.store import Transaction, View
from serai.controller.workflows.common import ForceParams, VmParams
from serai.controller.workflows.delete import DELETE_VM
from serai.controller.workflows.migrate import MIGRATE_VM, MigrateParams
from serai.controller.workflows.restart import RESTART_VM
from serai.controller.workflows.signals import PAUSE_VM, RESET_VM, RESUME_VM
from serai.controller.workflows.start import START_VM, StartParams
from serai.controller.workflows.stop import BY_RELEASE, STOP_VM, StopParams
from serai.core import lifecycle, placement
from serai.core.lease import is_over
from serai.core.lifecycle import VmEvent
from serai.core.migration import check_nothing_pending
from serai.core.observed import ALIVE
from serai.schema.errors import ConflictError
from serai.schema.ids import HostName
from serai.schema.job import Job
from serai.schema.vm import Vm, VmMigrate, VmStart, VmState, VmStop


async def refuse_deleted(tx: Transaction, vm: Vm) -> None:
    """Raises ConflictError while the VM is being deleted."""
    await refuse_while(tx, vm.id, "the VM is being deleted", "vm.delete", remedy="Leave it: it is going.")


async def delete(tx: Transaction, requester: Requester, vm: Vm, *, force: bool = False) -> Job:
    """Delete it with the volumes that came with it; a running one only by force."""
    await refuse_while(tx, vm.id, "the VM is being deleted", "vm.delete")
    if vm.status.state in ALIVE and not force:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}",
            field="force",
            value="false",
            remedy="Stop it first, or delete it by force (--force): what is not on its disks is lost.",
        )
    await need_holder(tx, vm)
    await need_disks(tx, vm, [disk for disk in vm.spec.disks if not disk.keep])
    return await requester.submit(tx, DELETE_VM, vm, ForceParams(vm=vm.id, force=force))


async def start(tx: Transaction, requester: Requester, vm: Vm, body: VmStart) -> Job:
    """Start one that is down: on the host that is named, or where it fits."""
    await refuse_deleted(tx, vm)
    if vm.spec.template:
        raise ConflictError(
            f"VM {vm.name} is a template",
            field="spec.template",
            value="true",
            remedy=f"Clone it: serai vm clone {vm.name} NAME.",
        )
    lifecycle.follow(vm.status.state, VmEvent.START, vm.name)
    await refuse_while(tx, vm.id, f"VM {vm.name} is being started", "vm.create", "vm.start", "vm.restart")
    await _check_starts(tx, vm, body.host)
    vm = await _want_running(tx, vm, running=True)
    return await requester.submit(tx, START_VM, vm, StartParams(vm=vm.id, host=body.host))


async def stop(tx: Transaction, requester: Requester, vm: Vm, body: VmStop) -> Job:
    """Shut it down; by force also one on the move, which is asked to end first, and one that nobody has word of."""
    await refuse_deleted(tx, vm)
    if vm.status.state is not VmState.DEFINED and not (body.force and vm.status.state in BY_RELEASE):
        lifecycle.follow(vm.status.state, VmEvent.STOP, vm.name)
    if vm.status.state not in (VmState.DEFINED, VmState.STOPPED):
        await need_holder(tx, vm)
    vm = await _want_running(tx, vm, running=False)
    return await requester.submit(tx, STOP_VM, vm, StopParams(vm=vm.id, **dict(body)))


async def restart(tx: Transaction, requester: Requester, vm: Vm, body: VmStop) -> Job:
    """Shut one down that is up, and start it again: what was edited meanwhile is in it then."""
    await refuse_deleted(tx, vm)
    if vm.status.state in (VmState.DEFINED, VmState.STOPPED, VmState.CRASHED):
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}",
            field="state",
            value=vm.status.state,
            remedy=f"Start it: serai vm start {vm.name}.",
        )
    lifecycle.follow(vm.status.state, VmEvent.STOP, vm.name)
    await refuse_while(tx, vm.id, f"VM {vm.name} is being restarted", "vm.restart")
    # Before it is stopped: one that could not start again goes on.
    await need_holder(tx, vm)
    await _check_starts(tx, vm, None)
    vm = await _want_running(tx, vm, running=True)
    return await requester.submit(tx, RESTART_VM, vm, StopParams(vm=vm.id, **dict(body)))


async def migrate(tx: Transaction, requester: Requester, vm: Vm, body: VmMigrate) -> Job:
    """Move a running one, if the destination will have it."""
    await refuse_deleted(tx, vm)
    remedy = "Wait for that job's end, or cancel it."
    await refuse_while(tx, vm.id, f"VM {vm.name} is on the move", "vm.migrate", remedy=remedy)
    lifecycle.follow(vm.status.state, VmEvent.MIGRATE, vm.name)
    check_nothing_pending(vm)
    await need_holder(tx, vm)
    hosts, ties = await capacity.for_placing(tx, vm)
    placement.choose_destination(vm, hosts, body.to, ties)
    # Without a name the workflow chooses when its turn has come; that one will do now was checked.
    return await requester.submit(tx, MIGRATE_VM, vm, MigrateParams(vm=vm.id, to=body.to))


def _signal(
    event: VmEvent, workflow: Workflow[VmParams, NoState]
) -> Callable[[Transaction, Requester, Vm], Awaitable[Job]]:
    async def signal(tx: Transaction, requester: Requester, vm: Vm) -> Job:
        await refuse_deleted(tx, vm)
        lifecycle.follow(vm.status.state, event, vm.name)
        await need_holder(tx, vm)
        return await requester.submit(tx, workflow, vm, VmParams(vm=vm.id))

    return signal


reset = _signal(VmEvent.RESET, RESET_VM)
pause = _signal(VmEvent.PAUSE, PAUSE_VM)
resume = _signal(VmEvent.RESUME, RESUME_VM)


async def _want_running(tx: Transaction, vm: Vm, *, running: bool) -> Vm:
    if vm.spec.running == running:
        return vm
    return await tx.vms.set_spec(vm.id, vm.spec.model_copy(update={"running": running}))


async def _check_starts(view: View, vm: Vm, host: HostName | None) -> None:
    """Raises what keeps the VM from starting on this host (none: on any)."""
    await need_disks(view, vm, vm.spec.disks)
    lease = await view.leases.get(vm.id)
    hosts, ties = await capacity.for_placing(view, vm)
    home = None if lease is None or is_over(lease) else lease.host
    placement.choose_start(vm, hosts, host, home, ties)


ACTIONS: dict[str, Action] = {
    "vm.delete": delete,
    "vm.start": start,
    "vm.stop": stop,
    "vm.restart": restart,
    "vm.reset": reset,
    "vm.pause": pause,
    "vm.resume": resume,
    "vm.migrate": migrate,
}
