"""VMs that a restored database does not know, taken back in from the documents that their hosts keep.

What the document refers to and the database lacks is inserted by id. A name that another resource has by now gets the
first digits of the id behind it.
"""

from __future__ import annotations

from serai.controller.services import vms
from serai.controller.services.rights import ALARM, Rights
from serai.controller.store import Transaction
from serai.controller.store.resources import IdT, ModelT, Resources
from serai.schema.document import VmDocument
from serai.schema.errors import ConflictError
from serai.schema.ids import HostName
from serai.schema.lease import LeaseRecord
from serai.schema.vm import Vm, VmStatus


async def take_in(tx: Transaction, rights: Rights, document: VmDocument, record: LeaseRecord, host: HostName) -> None:
    """Write the VM, what it refers to and its lease, unless it is known by now."""
    if await tx.vms.seek(document.vm.id) is not None:
        return
    for pool in document.pools:
        await _ensure(tx.pools, pool.id, pool)
    for network in document.networks:
        await _ensure(tx.networks, network.id, network)
    if document.image is not None:
        await _ensure(tx.images, document.image.id, document.image)
    for volume in document.volumes:
        await _ensure(tx.volumes, volume.id, volume)
    name = await _free_name(tx.vms, document.vm)
    vm = document.vm.model_copy(update={"name": name, "status": VmStatus()})
    await tx.vms.insert(vm)
    await vms.found_on(tx, vm.id, host, record.epoch, f"taken back in from {host}, which runs it")
    remark = await _hold_addresses(tx, vm)
    await rights.take_in(tx, vm.id, record, host)
    text = f"{vm.name} is taken back in: {host} runs it under epoch {record.epoch}, and the database did not know it"
    text += "" if name == document.vm.name else f" (its name {document.vm.name} is another VM's)"
    await tx.emit("vm.adopted", f"vm/{vm.name}", vm.id, text + remark, severity=ALARM, host=host, epoch=record.epoch)


async def _free_name(rows: Resources[ModelT, IdT], item: ModelT) -> str:
    return item.name if await rows.named(item.name) is None else f"{item.name}-{item.id[:4]}"


async def _ensure(rows: Resources[ModelT, IdT], item_id: IdT, item: ModelT) -> None:
    if await rows.seek(item_id) is None:
        await rows.insert(item.model_copy(update={"name": await _free_name(rows, item)}))


async def _hold_addresses(tx: Transaction, vm: Vm) -> str:
    """The VM's addresses are its own; returns a remark if another VM has one of them by now."""
    for vnic in vm.spec.vnics:
        mac_taken = vnic.mac is not None and await tx.networks.mac_taken(vnic.mac)
        if mac_taken or vnic.ip in await tx.networks.used(vnic.network):
            return f"; {vnic.ip} or {vnic.mac} is another VM's: edit one of the two"
    try:
        await tx.networks.hold(vm.id, vm.spec.vnics)
    except ConflictError as error:
        return f"; {error.info.message}"
    await tx.vms.update_status(vm.id, addresses=[str(vnic.ip) for vnic in vm.spec.vnics if vnic.ip is not None])
    return ""
