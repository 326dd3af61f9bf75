"""VMs that a restored database does not know, taken back in from the documents that their hosts keep.

What the document refers to and the database lacks is inserted by id. A name that another resource has by now gets the
first digits of the id behind it.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any, TypeVar

from serai.controller.services.rights import ALARM, Rights
from serai.controller.store import Transaction
from serai.controller.store.networks import Address
from serai.controller.store.resources import Resources
from serai.schema.document import VmDocument
from serai.schema.errors import ConflictError
from serai.schema.lease import LeaseRecord
from serai.schema.resource import Resource
from serai.schema.vm import Vm, VmSpec, VmState, VmStatus
from serai.schema.volume import Volume

ModelT = TypeVar("ModelT", bound=Resource[Any, Any])


async def take_in(tx: Transaction, rights: Rights, document: VmDocument, record: LeaseRecord, host: str) -> Vm | None:
    """Write the VM, what it refers to and its lease; None if it is known by now."""
    if await _by_id(tx.vms, document.vm.id) is not None:
        return None
    pools = {one.name: await _ensure(tx.pools, one) for one in document.pools}
    networks = {one.name: await _ensure(tx.networks, one) for one in document.networks}
    image = None if document.image is None else await _ensure(tx.images, document.image)
    name = await _free_name(tx.vms, document.vm)
    volumes = {one.name: await _ensure(tx.volumes, _volume(one, pools, name)) for one in document.volumes}
    spec = _spec(document.vm.spec, volumes, networks, image)
    status = VmStatus(
        state=VmState.UNKNOWN,
        host=host,
        epoch=record.epoch,
        since=tx.now,
        reason=f"taken back in from {host}, which runs it",
        placement="as its journal says",
    )
    vm = document.vm.model_copy(update={"name": name, "spec": spec, "status": status})
    await tx.vms.insert(vm)
    remark = await _hold_addresses(tx, vm)
    await rights.take_in(tx, vm.id, record, host)
    text = f"{vm.name} is taken back in: {host} runs it under epoch {record.epoch}, and the database did not know it"
    text += "" if name == document.vm.name else f" (its name {document.vm.name} is another VM's)"
    await tx.emit("vm.adopted", f"vm/{vm.name}", vm.id, text + remark, severity=ALARM, host=host, epoch=record.epoch)
    return vm


async def _by_id(rows: Resources[ModelT], resource_id: str) -> ModelT | None:
    return next(iter(await rows.all(rows.table.c.id == resource_id)), None)


async def _free_name(rows: Resources[ModelT], item: ModelT) -> str:
    return item.name if await rows.seek(item.name) is None else f"{item.name}-{item.id[:4]}"


async def _ensure(rows: Resources[ModelT], item: ModelT) -> str:
    """The resource's name in the database; it is inserted if its id is not there."""
    if (known := await _by_id(rows, item.id)) is not None:
        return known.name
    name = await _free_name(rows, item)
    await rows.insert(item.model_copy(update={"name": name}))
    return name


def _volume(volume: Volume, pools: dict[str, str], vm: str) -> Volume:
    """With the names that its pool and its VM have here."""
    spec = volume.spec.model_copy(update={"pool": pools.get(volume.spec.pool, volume.spec.pool)})
    return volume.model_copy(update={"spec": spec, "status": volume.status.model_copy(update={"vm": vm})})


def _spec(spec: VmSpec, volumes: dict[str, str], networks: dict[str, str], image: str | None) -> VmSpec:
    disks = [disk.model_copy(update={"volume": volumes.get(disk.volume or "", disk.volume)}) for disk in spec.disks]
    vnics = [vnic.model_copy(update={"network": networks.get(vnic.network, vnic.network)}) for vnic in spec.vnics]
    return spec.model_copy(update={"disks": disks, "vnics": vnics, "image": image})


async def _hold_addresses(tx: Transaction, vm: Vm) -> str:
    """The VM's addresses are its own; returns a remark if another VM has one of them by now."""
    wanted = []
    for vnic in vm.spec.vnics:
        if vnic.ip is not None and vnic.mac is not None:
            network = await tx.networks.find(vnic.network)
            wanted.append(Address(network.id, IPv4Address(vnic.ip), vnic.mac))
    own = [str(address.ip) for address in wanted]
    for address in wanted:
        if address.ip in await tx.networks.used(address.network_id) or await tx.networks.mac_taken(address.mac):
            return f"; {address.ip} or {address.mac} is another VM's: edit one of the two"
    try:
        await tx.networks.hold(vm.id, wanted)
    except ConflictError as error:
        return f"; {error.info.message}"
    await tx.vms.update_status(vm.id, addresses=own)
    return ""
