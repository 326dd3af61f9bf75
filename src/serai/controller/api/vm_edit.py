"""`vm.edit`: what is changed is checked like a new VM's, against what the VM has already."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from serai.controller import capacity, edits
from serai.controller.api.call import Api, Call, accepted
from serai.controller.api.checks import need_holder, refuse_while
from serai.controller.api.vm_parts import Owner, brief, check_seed, resolve_disks, resolve_vnics, write_disks
from serai.controller.store import Transaction
from serai.controller.store.vms import ALIVE
from serai.controller.workflows.edit import EDIT_VM, EditParams
from serai.core import placement
from serai.schema.errors import CapacityError, ConflictError, InvalidError
from serai.schema.units import format_size
from serai.schema.vm import Vm, VmEdit, VmSpec

HARDWARE = ("cpus", "memory", "disks", "vnics")
"""What a destination was prepared with: not to be changed under a move."""
PLAIN = ("cpus", "memory", "cmdline", "cloud_init", "restart", "autostart", "autostart_order", "template")


async def edit(api: Api, call: Call) -> Response:
    """Write the changed spec (a new generation) and the job that applies it, or takes it back.

    The job's params: `changes`, the body's given fields, without user-data.
    """
    body = call.need(VmEdit)
    async with api.store.transaction() as tx:
        vm = await tx.vms.find(call.name)
        await _refuse_in_between(tx, vm, body)
        if vm.status.state in ALIVE:
            # What is changed is told to the VM's host, which would not hear it.
            await need_holder(tx, vm)
        spec = await _new_spec(tx, vm, body)
        update: dict[str, Any] = {"spec": spec, "generation": vm.generation + (spec != vm.spec)}
        if body.labels is not None:
            update["labels"] = body.labels
        if body.description is not None:
            update["description"] = body.description
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
        given = brief(call.sent or body)
        await tx.emit("vm.changed", f"vm/{changed.name}", vm.id, "changed: " + ", ".join(sorted(given)))
        state = await edits.record(tx, vm, changed)
        return accepted(await call.submit(api, tx, EDIT_VM, changed, EditParams(vm=vm.id, changes=given), state))


async def _refuse_in_between(tx: Transaction, vm: Vm, body: VmEdit) -> None:
    await refuse_while(tx, vm.id, "the VM is being deleted", "vm.delete", remedy="Leave it: it is going.")
    if any(getattr(body, name) is not None for name in HARDWARE):
        await refuse_while(
            tx,
            vm.id,
            f"VM {vm.name} is on the move",
            "vm.migrate",
            remedy="Wait until it has arrived, or cancel that job.",
        )
    if body.disks is not None or body.vnics is not None:
        # Both are whole lists: made up from what that job may yet take back.
        await refuse_while(
            tx,
            vm.id,
            f"VM {vm.name} is being changed",
            "vm.edit",
            remedy="Wait for that job's end, or stop it: serai job cancel {job}.",
        )


async def _new_spec(tx: Transaction, vm: Vm, body: VmEdit) -> VmSpec:
    update = {name: getattr(body, name) for name in PLAIN if getattr(body, name) is not None}
    if body.template and vm.status.state in ALIVE:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}, and only a stopped one becomes a template",
            field="template",
            value="true",
            remedy="Stop it first.",
        )
    if body.cloud_init is not None and body.cloud_init != vm.spec.cloud_init:
        image = None if vm.spec.image is None else await tx.images.seek(vm.spec.image)
        check_seed(body.cloud_init, image, "cloud_init")
    if body.memory is not None and body.memory > vm.spec.memory:
        await _check_memory(tx, vm, body.memory)
    if body.disks is not None:
        update["disks"] = await _disks(tx, vm, body)
    if body.vnics is not None:
        vnics = await resolve_vnics(tx, vm.id, body.vnics, field="vnics")
        await tx.networks.hold(vm.id, vnics.addresses)
        update["vnics"] = vnics.vnics
    return vm.spec.model_copy(update=update)


async def _disks(tx: Transaction, vm: Vm, body: VmEdit) -> list[Any]:
    wanted = body.disks or []
    if not wanted and vm.spec.disks and vm.spec.image is None:
        raise InvalidError(
            "the VM would have nothing to boot from", field="disks", remedy="Leave it a disk that holds a system."
        )
    owner = Owner(vm.id, vm.name)
    found = await resolve_disks(tx, owner, wanted, before=vm.spec.disks, field="disks")
    await write_disks(tx, owner, found)
    return found.disks


async def _check_memory(tx: Transaction, vm: Vm, memory: int) -> None:
    spec = vm.spec.model_copy(update={"memory": memory})
    hosts = await capacity.all_hosts(tx, but_vm=vm.id)
    try:
        placement.place(spec, hosts, await capacity.ties(tx, vm, starts=False), prefer=vm.status.host)
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
