"""A VM's name, and those of the volumes that came with it."""

from __future__ import annotations

from serai.controller.store import Transaction
from serai.schema.errors import InvalidError
from serai.schema.vm import Vm

NAME_MAX = 63
"""Characters of a resource's name."""


def volume_name(vm: str, number: int | str, field: str) -> str:
    """The name of a volume that comes with a VM. Raises InvalidError for a VM's name that leaves no room for it."""
    name = f"{vm}-disk{number}"
    if len(name) > NAME_MAX:
        raise InvalidError(
            "the VM's name leaves no room for the names of its volumes",
            field=field,
            value=vm,
            remedy="Choose a name of up to 56 characters.",
        )
    return name


async def rename(tx: Transaction, vm: Vm, name: str) -> Vm:
    """The VM under its new name; the volumes that came with it are renamed alike.

    Raises ConflictError for a name that is taken, InvalidError for one that is too long for the volumes.
    """
    if await tx.vms.seek(name) is not None:
        raise tx.vms.taken(name, "rename")
    names: dict[str | None, str] = {}
    for volume in await tx.volumes.of_vm(vm.name):
        suffix = volume.name.removeprefix(f"{vm.name}-disk")
        new = volume.name
        if suffix != volume.name and await tx.volumes.seek(f"{name}-disk{suffix}") is None:
            new = volume_name(name, suffix, "rename")
        status = volume.status.model_copy(update={"vm": name})
        await tx.volumes.replace(volume.model_copy(update={"name": new, "status": status}))
        names[volume.name] = new
    disks = [disk.model_copy(update={"volume": names.get(disk.volume, disk.volume)}) for disk in vm.spec.disks]
    renamed = vm.model_copy(update={"name": name, "spec": vm.spec.model_copy(update={"disks": disks})})
    await tx.vms.replace(renamed)
    await tx.emit("vm.renamed", f"vm/{name}", vm.id, f"{vm.name} is {name} now", before=vm.name)
    return renamed
