"""A VM's status and what goes with it: the one setter of its state, its conditions, its disks, its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serai.controller.services import volumes
from serai.controller.store import Transaction, View
from serai.core import observed
from serai.core.launch import DiskPlan, Parts
from serai.core.migration import PENDING
from serai.core.observed import Event
from serai.schema.errors import NotFoundError
from serai.schema.ids import HostName, VmId
from serai.schema.resource import Condition
from serai.schema.vm import Vm, VmReport, VmStatus
from serai.schema.volume import VolumeState

SHOWN = ("state", "host", "epoch", "reason", "placement", "last_migration")
"""Fields of the status whose change is a `vm.state`; that of others is a `vm.status`, which says nothing to people."""


async def observe(tx: Transaction, vm_id: VmId, event: Event, reason: str, **facts: Any) -> Vm | None:
    """Write what was learned of a VM: its state by the table, and other fields of its status.

    Returns the VM as it is then; None, with nothing written, if the event tells nothing new of it.
    """
    vm = await tx.vms.get(vm_id)
    status = observed.after(vm.status, event, reason, tx.now, **facts)
    return None if status is None else await _set(tx, vm, status)


async def found_on(tx: Transaction, vm_id: VmId, host: HostName, epoch: int, reason: str) -> None:
    """A host's journal holds its lease, which the database did not know."""
    facts = {"host": host, "epoch": epoch, "placement": "as its journal says"}
    await observe(tx, vm_id, Event.HOLDER_FOUND, reason, **facts)


async def report(tx: Transaction, vm: Vm, said: VmReport) -> Vm:
    """Write a host's report, which is believed."""
    return await _set(tx, vm, observed.merged(vm.status, said))


async def note(tx: Transaction, vm_id: VmId, **facts: Any) -> Vm:
    """Write fields of the status other than its state."""
    assert "state" not in facts
    vm = await tx.vms.get(vm_id)
    return await _set(tx, vm, vm.status.model_copy(update=facts))


async def _set(tx: Transaction, vm: Vm, status: VmStatus) -> Vm:
    if status == vm.status:
        return vm
    if all(getattr(status, field) == getattr(vm.status, field) for field in SHOWN):
        await tx.emit("vm.status", f"vm/{vm.name}", vm.id)
    else:
        text = f"{vm.name} is {status.state}" + (f" on {status.host}" if status.host else "")
        text += f": {status.reason}" if status.reason else ""
        facts = {"state": status.state.value, "host": status.host, "epoch": status.epoch}
        await tx.emit("vm.state", f"vm/{vm.name}", vm.id, text, **facts)
    return await tx.vms.set_status(vm.id, status)


async def set_conditions(tx: Transaction, vm: Vm, kind: str, conditions: Sequence[Condition]) -> bool:
    """Replace the VM's conditions of one type; returns whether they were others."""
    before = vm.status.conditions
    after = [*(one for one in before if one.type != kind), *conditions]
    if after != before:
        await tx.vms.update_status(vm.id, conditions=after)
    return after != before


async def set_pending(tx: Transaction, vm_id: VmId, pending: Sequence[Condition] = ()) -> None:
    """What of its spec a VM gets with its next start only; if nothing, it has let go of the disks that it has no more.

    What is pending may be a disk that QEMU still has open: then it is the VM's until the next start.
    """
    vm = await tx.vms.get(vm_id)
    await set_conditions(tx, vm, PENDING, pending)
    for volume in () if pending else await tx.volumes.of_vm(vm_id):
        if volume.id not in vm.spec.volumes:
            await volumes.free(tx, volume, vm)


async def forget(tx: Transaction, vm_id: VmId) -> None:
    """The VM is deleted; what is left of its volumes is nobody's. Its lease is forgotten by `Rights`."""
    try:
        vm = await tx.vms.get(vm_id)
    except NotFoundError:
        return
    for volume in await tx.volumes.of_vm(vm_id):
        # Those that were never made go with the row; those that exist were dropped, or are somebody's to keep.
        if volume.status.state is VolumeState.CREATING:
            await tx.volumes.delete(volume.id)
        else:
            await tx.volumes.update_status(volume.id, **volumes.FREE)
    await tx.vms.delete(vm_id)
    await tx.emit("vm.deleted", f"vm/{vm.name}", vm_id, f"{vm.name} is deleted")


async def disks(view: View, vm: Vm) -> list[DiskPlan]:
    """Its volumes with their pools, in the order of its disks."""
    found = []
    for volume_id in vm.spec.volumes:
        volume = await view.volumes.get(volume_id)
        found.append(DiskPlan(volume, await view.pools.get(volume.spec.pool)))
    return found


async def parts(view: View, vm_id: VmId) -> Parts:
    """What its launch is made of."""
    vm = await view.vms.get(vm_id)
    return Parts(
        vm=vm,
        disks=await disks(view, vm),
        networks={vnic.network: await view.networks.get(vnic.network) for vnic in vm.spec.vnics},
        image=None if vm.spec.image is None else await view.images.get(vm.spec.image),
    )
