"""`vm.edit`: what is changed is checked like a new VM's, against what the VM has already."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from serai.controller import capacity
from serai.controller.api.call import Api, Call, accepted
from serai.controller.api.checks import need_holder, refuse_while
from serai.controller.api.vm_parts import brief, masked, resolve_disks, resolve_vnics, write_disks
from serai.controller.store import Transaction
from serai.controller.store.vms import ALIVE
from serai.core import placement
from serai.schema.errors import CapacityError, ConflictError, InvalidError
from serai.schema.units import format_size
from serai.schema.vm import Vm, VmEdit, VmSpec

HARDWARE = ("cpus", "memory", "disks", "vnics")
"""What a destination was prepared with: not to be changed under a move."""
PLAIN = ("cpus", "memory", "cloud_init", "restart", "autostart", "autostart_order", "template")


async def edit(api: Api, call: Call) -> Response:
    """Write the changed spec (a new generation) and the job that applies it.

    The job's params: `changes` (the body's given fields) and `before` (the spec as it was), without
    user-data.
    """
    body = call.need(VmEdit)
    async with api.store.transaction() as tx:
        vm = await tx.vms.find(call.name)
        await refuse_while(tx, vm.id, "the VM is being deleted", "vm.delete", remedy="Leave it: it is going.")
        if any(getattr(body, name) is not None for name in HARDWARE):
            await refuse_while(
                tx,
                vm.id,
                f"VM {vm.name} is on the move",
                "vm.migrate",
                remedy="Wait until it has arrived, or cancel that job.",
            )
        if vm.status.state in ALIVE:
            # What is changed is told to the VM's host, which would not hear it.
            await need_holder(tx, vm)
        if body.rename is not None and body.rename != vm.name:
            vm = await _rename(tx, vm, body.rename)
        spec = await _new_spec(tx, vm, body)
        update: dict[str, Any] = {"spec": spec, "generation": vm.generation + (spec != vm.spec)}
        if body.labels is not None:
            update["labels"] = body.labels
        if body.description is not None:
            update["description"] = body.description
        if spec.vnics != vm.spec.vnics:
            addresses = [str(vnic.ip) for vnic in spec.vnics]
            update["status"] = vm.status.model_copy(update={"addresses": addresses})
        changed = vm.model_copy(update=update)
        await tx.vms.replace(changed)
        changes = brief(body)
        await tx.emit("vm.changed", f"vm/{changed.name}", vm.id, "changed: " + ", ".join(sorted(changes)))
        job = await api.engine.submit(
            tx,
            call.endpoint,
            f"vm/{changed.name}",
            vm.id,
            {"id": vm.id, "changes": changes, "before": masked(vm.spec.model_dump(mode="json"))},
            requested_by=call.principal,
            reason=call.reason,
        )
        return accepted(job)


async def _new_spec(tx: Transaction, vm: Vm, body: VmEdit) -> VmSpec:
    update = {name: getattr(body, name) for name in PLAIN if getattr(body, name) is not None}
    if body.template and vm.status.state in ALIVE:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}, and only a stopped one becomes a template",
            field="template",
            value="true",
            remedy="Stop it first.",
        )
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
    found = await resolve_disks(tx, vm.name, wanted, before=vm.spec.disks, field="disks")
    await write_disks(tx, vm.name, found)
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


async def _rename(tx: Transaction, vm: Vm, name: str) -> Vm:
    """The VM under its new name; the volumes that came with it are renamed alike."""
    if await tx.vms.seek(name) is not None:
        raise tx.vms.taken(name, "rename")
    names: dict[str | None, str] = {}
    for volume in await tx.volumes.of_vm(vm.name):
        suffix = volume.name.removeprefix(f"{vm.name}-disk")
        new = volume.name
        if suffix != volume.name and await tx.volumes.seek(f"{name}-disk{suffix}") is None:
            new = f"{name}-disk{suffix}"
            if len(new) > 63:
                raise InvalidError(
                    "the name leaves no room for those of the VM's volumes",
                    field="rename",
                    value=name,
                    remedy="Choose a name of up to 56 characters.",
                )
        status = volume.status.model_copy(update={"vm": name})
        await tx.volumes.replace(volume.model_copy(update={"name": new, "status": status}))
        names[volume.name] = new
    disks = [disk.model_copy(update={"volume": names.get(disk.volume, disk.volume)}) for disk in vm.spec.disks]
    renamed = vm.model_copy(update={"name": name, "spec": vm.spec.model_copy(update={"disks": disks})})
    await tx.vms.replace(renamed)
    await tx.emit("vm.renamed", f"vm/{name}", vm.id, f"{vm.name} is {name} now", before=vm.name)
    return renamed
