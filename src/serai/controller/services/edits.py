"""What an edit's job remembers, and how the store is brought back by it when the edit fails or is cancelled.

The memory is the job's state, which is shown to nobody: a VM's fields may hold user-data.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from serai.controller.store import Transaction, View
from serai.core.edits import OWN, Changes, changes, taken_back, vm_document, volume_document
from serai.schema.ids import VmId, VolumeId
from serai.schema.resource import Frozen
from serai.schema.units import format_size
from serai.schema.vm import Vm, VmSpec, VnicSpec
from serai.schema.volume import Volume, VolumeState

UNFINISHED = "it has grown, but not all that use it were told: resize it to the size that it has"
"""Reason of a volume whose growth is to be asked for again."""


class EditState(Frozen):
    """`generation`: before the edit; `made` and `taken`: ids of its volumes that are new, and that were free before."""

    changes: dict[str, list[Any]] = Field(default_factory=dict)
    generation: int = 0
    made: list[VolumeId] = Field(default_factory=list)
    taken: list[VolumeId] = Field(default_factory=list)
    told: bool = False
    """The VM's host was sent what the VM is to be."""
    stays: list[str] | None = None
    """What could not be taken back in the store; none: it was not tried."""


async def record(view: View, before: Vm, after: Vm) -> EditState:
    """The memory of an edit."""
    made: list[VolumeId] = []
    taken: list[VolumeId] = []
    for volume_id in [one for one in after.spec.volumes if one not in before.spec.volumes]:
        new = (await view.volumes.get(volume_id)).status.state is VolumeState.CREATING
        (made if new else taken).append(volume_id)
    found = changes(vm_document(before), vm_document(after))
    return EditState(changes=found, generation=before.generation, made=made, taken=taken)


async def take_back_vm(tx: Transaction, vm_id: VmId, made: Changes) -> list[str]:
    """Bring back what the edit changed, as a new generation; returns the fields that stay, for the reason given."""
    vm = await tx.vms.get(vm_id)
    back, stays = taken_back(vm_document(vm), made)
    stays = [f"{name} (changed again since)" for name in stays]
    if "name" in back and await tx.vms.named(back["name"]) is not None:
        stays.append(f"name ({back.pop('name')} is another's now)")
    vnics = [VnicSpec.model_validate(one) for one in back["vnics"]] if "vnics" in back else None
    taken = None if vnics is None else await _taken(tx, vm_id, vnics)
    if taken is not None:
        del back["vnics"]
        stays.append(f"vnics ({taken} is another VM's now)")
    if "disks" in back:
        sizes = [(await tx.volumes.get(disk["volume"])).spec.size for disk in back["disks"]]
        back["disks"] = [{**disk, "size": size} for disk, size in zip(back["disks"], sizes, strict=True)]
    own = {name: back.pop(name) for name in OWN if name in back}
    spec = VmSpec.model_validate({**vm.spec.model_dump(mode="json"), **back})
    if vnics is not None and taken is None:
        await tx.networks.hold(vm_id, vnics)
        own["status"] = vm.status.model_copy(update={"addresses": [str(vnic.ip) for vnic in vnics]})
    changed = vm.model_copy(update={**own, "spec": spec, "generation": vm.generation + (spec != vm.spec)})
    await tx.vms.replace(changed)
    if changed.name != vm.name:
        await tx.emit("vm.renamed", f"vm/{changed.name}", vm_id, f"{vm.name} is {changed.name} now", before=vm.name)
    await tx.emit("vm.changed", f"vm/{changed.name}", vm_id, "taken back: " + ", ".join(sorted(made)))
    return stays


async def _taken(view: View, vm_id: VmId, vnics: list[VnicSpec]) -> str | None:
    """The first address that another VM got after the edit had given it up."""
    for vnic in vnics:
        if vnic.ip in await view.networks.used(vnic.network, but_vm=vm_id):
            return str(vnic.ip)
        if vnic.mac is not None and await view.networks.mac_taken(vnic.mac, but_vm=vm_id):
            return vnic.mac
    return None


async def take_back_volume(tx: Transaction, volume_id: VolumeId, made: Changes, real: int | None) -> list[str]:
    """Bring back what the edit changed; returns the fields that stay, for the reason given.

    `real`: the bytes that its host says it has; none: it was not asked to grow it. What has grown stays so.
    """
    volume = await tx.volumes.get(volume_id)
    back, stays = taken_back(volume_document(volume), made)
    stays = [f"{name} (changed again since)" for name in stays]
    status = volume.status
    if real is not None and real > status.size:
        status = status.model_copy(update={"size": real, "reason": UNFINISHED})
    if real is not None and "size" in back and real > back["size"]:
        back["size"] = real
        stays.append(f"size ({format_size(real)}: the host has grown it, and volumes do not shrink)")
    spec = volume.spec.model_copy(update={"size": back.pop("size", volume.spec.size)})
    changed = volume.model_copy(
        update={**back, "spec": spec, "status": status, "generation": volume.generation + (spec != volume.spec)}
    )
    await tx.volumes.replace(changed)
    await follow_size(tx, changed)
    said = "taken back: " + ", ".join(sorted(made)) + (f"; stays: {', '.join(stays)}" if stays else "")
    await tx.emit("volume.changed", f"volume/{volume.name}", volume_id, said)
    return stays


async def follow_size(tx: Transaction, volume: Volume) -> None:
    """The spec of the VM that has the volume says how large its disks are, too."""
    if volume.status.vm is None:
        return
    vm = await tx.vms.get(volume.status.vm)
    update = {"size": volume.spec.size}
    disks = [disk.model_copy(update=update) if disk.volume == volume.id else disk for disk in vm.spec.disks]
    if disks != vm.spec.disks:
        await tx.vms.set_spec(vm.id, vm.spec.model_copy(update={"disks": disks}))
