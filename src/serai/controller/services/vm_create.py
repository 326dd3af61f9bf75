"""New VMs, from a spec or as copies. Names, MACs and addresses are chosen here: the job has nothing to decide."""

from __future__ import annotations

from typing import Any

from serai.controller.services import capacity
from serai.controller.services.checks import need_disks
from serai.controller.services.create import Draft, add
from serai.controller.services.requester import Action, Requester
from serai.controller.services.vm_actions import refuse_deleted
from serai.controller.services.vm_disks import Owner, check_boot, make_volume, resolve_disks
from serai.controller.services.vm_vnics import resolve_vnics
from serai.controller.store import Transaction
from serai.controller.workflows.clone import CLONE_VM, CloneParams
from serai.controller.workflows.common import VmParams
from serai.controller.workflows.create import CREATE_VM
from serai.core import placement, userdata
from serai.core.observed import ALIVE
from serai.lib.ids import new_id
from serai.schema.errors import ConflictError
from serai.schema.ids import VmId
from serai.schema.job import Job
from serai.schema.vm import DiskSpec, Vm, VmClone, VmCreate, VmSpec, VmStatus


async def create(tx: Transaction, requester: Requester, body: VmCreate) -> Job:
    """Write the VM, its volumes and the job together."""
    owner = await _owner(tx, body.name)
    image = await check_boot(tx, body.spec.image, body.spec.disks)
    userdata.check_seed(body.spec.cloud_init, image, "spec.cloud_init")
    disks = await resolve_disks(tx, owner, body.spec.disks, image=image)
    vnics = await resolve_vnics(tx, owner.id, body.spec.vnics)
    # A template is only ever copied.
    running = body.spec.running and not body.spec.template
    spec = body.spec.model_copy(update={"disks": disks, "vnics": vnics, "running": running})
    vm = await _write(tx, requester, owner.id, body, spec, f"asked for by {requester.name}")
    hosts, ties = await capacity.for_placing(tx, vm, starts=running)
    placement.place(spec, hosts, ties)
    return await requester.submit(tx, CREATE_VM, vm, VmParams(vm=vm.id))


async def clone(tx: Transaction, requester: Requester, vm: Vm, body: VmClone) -> Job:
    """Write the copy (stopped, with MACs and addresses of its own) and the job that fills its volumes."""
    await refuse_deleted(tx, vm)
    if vm.status.state in ALIVE:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}, and only a stopped one is copied",
            field="state",
            value=vm.status.state,
            remedy="Stop it first.",
        )
    owner = await _owner(tx, body.name)
    await need_disks(tx, vm, vm.spec.disks)
    disks = await _copy_disks(tx, vm, owner)
    blank = [vnic.model_copy(update={"mac": None, "ip": None}) for vnic in vm.spec.vnics]
    vnics = await resolve_vnics(tx, owner.id, blank)
    update: dict[str, Any] = {"disks": disks, "vnics": vnics, "running": False, "template": False}
    draft, spec = vm.model_copy(update={"name": body.name}), vm.spec.model_copy(update=update)
    copy = await _write(tx, requester, owner.id, draft, spec, f"cloned from {vm.name}")
    params = CloneParams(vm=vm.id, name=copy.name, clone=copy.id)
    return await requester.submit(tx, CLONE_VM, vm, params)


async def _owner(tx: Transaction, name: str) -> Owner:
    if await tx.vms.named(name) is not None:
        raise tx.vms.taken(name)
    return Owner(new_id(VmId), name)


async def _write(tx: Transaction, requester: Requester, vm_id: VmId, draft: Draft, spec: VmSpec, message: str) -> Vm:
    status = VmStatus(since=tx.now, addresses=[str(vnic.ip) for vnic in spec.vnics])
    vm = await add(tx, tx.vms, vm_id, draft, spec, status, message)
    requester.rights.created(tx, vm.id)
    await tx.networks.hold(vm.id, spec.vnics)
    return vm


async def _copy_disks(tx: Transaction, vm: Vm, owner: Owner) -> list[DiskSpec]:
    copies = []
    for disk in vm.spec.disks:
        if disk.volume is None:
            continue
        old = await tx.volumes.get(disk.volume)
        volume = await make_volume(tx, owner, old.spec.model_copy(update={"image": None}))
        copies.append(disk.model_copy(update={"volume": volume.id, "size": old.spec.size, "keep": False}))
    return copies


ACTIONS: dict[str, Action] = {"vm.create": create, "vm.clone": clone}
