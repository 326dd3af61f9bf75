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
from serai.schema.ids import HostName
from serai.schema.lease import LeaseRecord
from serai.schema.resource import Resource
from serai.schema.vm import Vm, VmState, VmStatus

ModelT = TypeVar("ModelT", bound=Resource[Any, Any])
IdT = TypeVar("IdT", bound=str)


async def take_in(
    tx: Transaction, rights: Rights, document: VmDocument, record: LeaseRecord, host: HostName
) -> Vm | None:
    """Write the VM, what it refers to and its lease; None if it is known by now."""
    if await tx.vms.seek(document.vm.id) is not None:
        return None
    for pool in document.pools:
        await _ensure(tx.pools, pool.id, pool)
    for network in document.networks:
        await _ensure(tx.networks, network.id, network)
    if document.image is not None:
        await _ensure(tx.images, document.image.id, document.image)
    for volume in document.volumes:
        await _ensure(tx.volumes, volume.id, volume)
    name = await _free_name(tx.vms, document.vm)
    status = VmStatus(
        state=VmState.UNKNOWN,
        host=host,
        epoch=record.epoch,
        since=tx.now,
        reason=f"taken back in from {host}, which runs it",
        placement="as its journal says",
    )
    vm = document.vm.model_copy(update={"name": name, "status": status})
    await tx.vms.insert(vm)
    remark = await _hold_addresses(tx, vm)
    await rights.take_in(tx, vm.id, record, host)
    text = f"{vm.name} is taken back in: {host} runs it under epoch {record.epoch}, and the database did not know it"
    text += "" if name == document.vm.name else f" (its name {document.vm.name} is another VM's)"
    await tx.emit("vm.adopted", f"vm/{vm.name}", vm.id, text + remark, severity=ALARM, host=host, epoch=record.epoch)
    return vm


async def _free_name(rows: Resources[ModelT, IdT], item: ModelT) -> str:
    return item.name if await rows.named(item.name) is None else f"{item.name}-{item.id[:4]}"


async def _ensure(rows: Resources[ModelT, IdT], item_id: IdT, item: ModelT) -> None:
    if await rows.seek(item_id) is None:
        await rows.insert(item.model_copy(update={"name": await _free_name(rows, item)}))


async def _hold_addresses(tx: Transaction, vm: Vm) -> str:
    """The VM's addresses are its own; returns a remark if another VM has one of them by now."""
    wanted = []
    for vnic in vm.spec.vnics:
        if vnic.ip is not None and vnic.mac is not None:
            network = await tx.networks.get(vnic.network)
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
