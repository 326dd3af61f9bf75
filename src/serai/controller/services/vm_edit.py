"""`vm.edit`: what is changed is checked like a new VM's, against what the VM has already."""

from __future__ import annotations

from typing import Any

from serai.controller.services import capacity, edits
from serai.controller.services.checks import WAIT_OR_CANCEL, need_holder, refuse_while
from serai.controller.services.requester import Requester
from serai.controller.services.vm_disks import Owner, resolve_disks
from serai.controller.services.vm_vnics import resolve_vnics
from serai.controller.store import Transaction
from serai.controller.workflows.edit import EDIT_VM, EditParams
from serai.core import placement, userdata
from serai.core.edits import given
from serai.core.observed import ALIVE
from serai.lib.redact import MASK
from serai.schema.errors import CapacityError, ConflictError, InvalidError
from serai.schema.job import Job
from serai.schema.units import format_size
from serai.schema.vm import Vm, VmEdit, VmSpec

HARDWARE = ("cpus", "memory", "disks", "vnics")
"""What a destination was prepared with: not to be changed under a move."""
PLAIN = ("cpus", "memory", "cmdline", "cloud_init", "restart", "autostart", "autostart_order", "template")


async def edit(tx: Transaction, requester: Requester, vm: Vm, body: VmEdit, sent: VmEdit | None = None) -> Job:
    """Write the changed spec (a new generation) and the job that applies it, or takes it back.

    `sent`: the body with names for references, if there is one. Its given fields, without user-data, are what the job
    shows as its param `changes`.
    """
    await _refuse_in_between(tx, vm, body)
    if vm.status.state in ALIVE:
        # What is changed is told to the VM's host, which would not hear it.
        await need_holder(tx, vm)
    spec = await _new_spec(tx, vm, body)
    update: dict[str, Any] = given(body, "labels", "description")
    update |= {"spec": spec, "generation": vm.generation + (spec != vm.spec)}
    if body.rename is not None and body.rename != vm.name:
        if await tx.vms.named(body.rename) is not None:
            raise tx.vms.taken(body.rename, "rename")
        update["name"] = body.rename
        await tx.emit("vm.renamed", f"vm/{body.rename}", vm.id, f"{vm.name} is {body.rename} now", before=vm.name)
    if spec.vnics != vm.spec.vnics:
        addresses = [str(vnic.ip) for vnic in spec.vnics]
        update["status"] = vm.status.model_copy(update={"addresses": addresses})
    changed = vm.model_copy(update=update)
    await tx.vms.replace(changed)
    fields = _brief(sent or body)
    await tx.emit("vm.changed", f"vm/{changed.name}", vm.id, "changed: " + ", ".join(sorted(fields)))
    state = await edits.record(tx, vm, changed)
    return await requester.submit(tx, EDIT_VM, changed, EditParams(vm=vm.id, changes=fields), state)


async def _refuse_in_between(tx: Transaction, vm: Vm, body: VmEdit) -> None:
    await refuse_while(tx, vm.id, "the VM is being deleted", "vm.delete", remedy="Leave it: it is going.")
    if given(body, *HARDWARE):
        remedy = "Wait until it has arrived, or cancel that job."
        await refuse_while(tx, vm.id, f"VM {vm.name} is on the move", "vm.migrate", remedy=remedy)
    if body.disks is not None or body.vnics is not None:
        # Both are whole lists: made up from what that job may yet take back.
        await refuse_while(tx, vm.id, f"VM {vm.name} is being changed", "vm.edit", remedy=WAIT_OR_CANCEL)


async def _new_spec(tx: Transaction, vm: Vm, body: VmEdit) -> VmSpec:
    update = given(body, *PLAIN)
    if body.template and vm.status.state in ALIVE:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}, and only a stopped one becomes a template",
            field="template",
            value="true",
            remedy="Stop it first.",
        )
    if body.cloud_init is not None and body.cloud_init != vm.spec.cloud_init:
        image = None if vm.spec.image is None else await tx.images.seek(vm.spec.image)
        userdata.check_seed(body.cloud_init, image, "cloud_init")
    if body.memory is not None and body.memory > vm.spec.memory:
        await _check_memory(tx, vm, body.memory)
    if body.disks is not None:
        if not body.disks and vm.spec.disks and vm.spec.image is None:
            remedy = "Leave it a disk that holds a system."
            raise InvalidError("the VM would have nothing to boot from", field="disks", remedy=remedy)
        owner = Owner(vm.id, vm.name)
        update["disks"] = await resolve_disks(tx, owner, body.disks, before=vm.spec.disks, field="disks")
    if body.vnics is not None:
        update["vnics"] = await resolve_vnics(tx, vm.id, body.vnics, field="vnics")
        await tx.networks.hold(vm.id, update["vnics"])
    return vm.spec.model_copy(update=update)


async def _check_memory(tx: Transaction, vm: Vm, memory: int) -> None:
    spec = vm.spec.model_copy(update={"memory": memory})
    hosts, ties = await capacity.for_placing(tx, vm, starts=False)
    try:
        placement.place(spec, hosts, ties, prefer=vm.status.host)
    except InvalidError as error:
        raise InvalidError(
            error.info.message, field="memory", value=error.info.value, remedy=error.info.remedy
        ) from error
    if vm.status.state in ALIVE:
        here = next((host for host in hosts if host.name == vm.status.host), None)
        if here is not None and placement.free(here) < memory:
            raise CapacityError(
                f"host {here.name}, where the VM runs, has {format_size(placement.free(here))} for it",
                field="memory",
                value=format_size(memory),
                remedy="Move the VM to another host first.",
            )


def _brief(body: VmEdit) -> dict[str, Any]:
    """The given fields as JSON. Without user-data: that may hold passwords, and whoever may list jobs sees these."""
    fields = body.model_dump(mode="json", exclude_unset=True)
    seed = fields.get("cloud_init")
    if seed and seed.get("user_data"):
        fields["cloud_init"] = {**seed, "user_data": MASK}
    return fields
