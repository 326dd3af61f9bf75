"""VMs: everything is checked here, before anything is written; the workflows act on what this wrote."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from sqlalchemy import ColumnElement

from serai.controller import capacity
from serai.controller.api import vm_edit
from serai.controller.api.call import Api, Call, Handler, accepted
from serai.controller.api.checks import need_disks, need_holder, refuse_while
from serai.controller.api.references import respond, respond_page
from serai.controller.api.vm_parts import (
    Disks,
    Owner,
    check_boot,
    check_seed,
    own_volume,
    resolve_disks,
    resolve_vnics,
    write_disks,
)
from serai.controller.jobs.workflow import NoState, Workflow
from serai.controller.store import Transaction, View
from serai.controller.store.vms import ALIVE
from serai.controller.workflows.edit import CLONE_VM, CloneParams
from serai.controller.workflows.lifecycle import (
    CREATE_VM,
    DELETE_VM,
    PAUSE_VM,
    RESET_VM,
    RESTART_VM,
    RESUME_VM,
    START_VM,
    STOP_VM,
    ForceParams,
    StartParams,
    StopParams,
    VmParams,
)
from serai.controller.workflows.migrate import MIGRATE_VM, MigrateParams
from serai.core import lifecycle, placement
from serai.core.lease import is_over
from serai.core.lifecycle import VmEvent
from serai.core.migration import check_nothing_pending
from serai.lib.ids import new_id
from serai.schema.errors import ConflictError
from serai.schema.ids import HostName, VmId
from serai.schema.vm import Vm, VmClone, VmCreate, VmMigrate, VmSpec, VmStart, VmState, VmStatus, VmStop

CLEARED = ("vm.delete",)
BY_FORCE = (VmState.MIGRATING, VmState.UNKNOWN)
"""What only force stops."""


async def list_(api: Api, call: Call) -> Response:
    """By name; `host`, `state` and `label` (`key` or `key=value`) narrow it."""
    async with api.store.read() as view:
        table = view.vms.table.c
        where: list[ColumnElement[bool]] = []
        if "host" in call.query:
            where.append(table.host == (await view.hosts.find(call.query["host"], "host")).name)
        if "state" in call.query:
            where.append(table.state == call.query["state"].value)
        if "label" in call.query:
            key, given, value = str(call.query["label"]).partition("=")
            where.append(view.vms.labelled(key, value if given else None))
        return await respond_page(view, await view.vms.page(call.limit, call.cursor, *where), Vm)


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return await respond(view, await view.vms.find(call.name))


async def create(api: Api, call: Call) -> Response:
    """Check all, choose names, MACs and addresses, and write the VM, its volumes and the job together."""
    body = call.need(VmCreate)
    async with api.store.transaction() as tx:
        if await tx.vms.named(body.name) is not None:
            raise tx.vms.taken(body.name)
        owner = Owner(new_id(VmId), body.name)
        image = await check_boot(tx, body.spec.image, body.spec.disks)
        check_seed(body.spec.cloud_init, image, "spec.cloud_init")
        disks = await resolve_disks(tx, owner, body.spec.disks, image=image)
        vnics = await resolve_vnics(tx, owner.id, body.spec.vnics)
        spec = body.spec.model_copy(
            update={
                "disks": disks.disks,
                "vnics": vnics.vnics,
                # A template is only ever copied.
                "running": body.spec.running and not body.spec.template,
            }
        )
        vm = Vm(
            name=body.name,
            id=owner.id,
            generation=1,
            labels=body.labels,
            description=body.description,
            created=tx.now,
            spec=spec,
            status=VmStatus(since=tx.now, addresses=[str(vnic.ip) for vnic in vnics.vnics]),
        )
        await write_disks(tx, owner, disks)
        await _check_fits(tx, vm, spec)
        await tx.vms.insert(vm)
        api.rights.created(tx, vm.id)
        await tx.networks.hold(vm.id, vnics.addresses)
        await tx.emit("vm.created", f"vm/{vm.name}", vm.id, f"asked for by {call.principal}")
        return accepted(await call.submit(api, tx, CREATE_VM, vm, VmParams(vm=vm.id)))


async def delete(api: Api, call: Call) -> Response:
    """Delete it with the volumes that came with it; a running one only by force."""
    force = bool(call.query.get("force", False))
    async with api.store.transaction() as tx:
        vm = await tx.vms.find(call.name)
        await refuse_while(tx, vm.id, "the VM is being deleted", *CLEARED, remedy="Wait for that job's end.")
        if vm.status.state in ALIVE and not force:
            raise ConflictError(
                f"VM {vm.name} is {vm.status.state}",
                field="force",
                value="false",
                remedy="Stop it first, or delete it by force (--force): what is not on its disks is lost.",
            )
        await need_holder(tx, vm)
        await need_disks(tx, vm, [disk for disk in vm.spec.disks if not disk.keep])
        return accepted(await call.submit(api, tx, DELETE_VM, vm, ForceParams(vm=vm.id, force=force)))


async def start(api: Api, call: Call) -> Response:
    """Start one that is down: on the host that is named, or where it fits."""
    body = call.need(VmStart)
    async with api.store.transaction() as tx:
        vm = await _find(tx, call)
        if vm.spec.template:
            raise ConflictError(
                f"VM {vm.name} is a template",
                field="spec.template",
                value="true",
                remedy=f"Clone it: serai vm clone {vm.name} NAME.",
            )
        lifecycle.follow(vm.status.state, VmEvent.START, vm.name)
        await refuse_while(
            tx,
            vm.id,
            f"VM {vm.name} is being started",
            "vm.create",
            "vm.start",
            "vm.restart",
            remedy="Wait for that job's end.",
        )
        await _check_starts(tx, vm, body.host)
        vm = await _want_running(tx, vm, running=True)
        return accepted(await call.submit(api, tx, START_VM, vm, StartParams(vm=vm.id, host=body.host)))


async def stop(api: Api, call: Call) -> Response:
    """Shut it down; by force also one on the move, which is asked to end first, and one that does not answer."""
    body = call.need(VmStop)
    async with api.store.transaction() as tx:
        vm = await _find(tx, call)
        if vm.status.state is not VmState.DEFINED and not (body.force and vm.status.state in BY_FORCE):
            lifecycle.follow(vm.status.state, VmEvent.STOP, vm.name)
        if vm.status.state not in (VmState.DEFINED, VmState.STOPPED):
            await need_holder(tx, vm)
        vm = await _want_running(tx, vm, running=False)
        return accepted(await call.submit(api, tx, STOP_VM, vm, _stop_params(vm, body)))


async def restart(api: Api, call: Call) -> Response:
    """Shut one down that is up, and start it again: what was edited meanwhile is in it then."""
    body = call.need(VmStop)
    async with api.store.transaction() as tx:
        vm = await _find(tx, call)
        if vm.status.state in (VmState.DEFINED, VmState.STOPPED, VmState.CRASHED):
            raise ConflictError(
                f"VM {vm.name} is {vm.status.state}",
                field="state",
                value=vm.status.state,
                remedy=f"Start it: serai vm start {vm.name}.",
            )
        lifecycle.follow(vm.status.state, VmEvent.STOP, vm.name)
        await refuse_while(
            tx, vm.id, f"VM {vm.name} is being restarted", "vm.restart", remedy="Wait for that job's end."
        )
        # Before it is stopped: one that could not start again goes on.
        await need_holder(tx, vm)
        await _check_starts(tx, vm, None)
        vm = await _want_running(tx, vm, running=True)
        return accepted(await call.submit(api, tx, RESTART_VM, vm, _stop_params(vm, body)))


def _signal(event: VmEvent, workflow: Workflow[VmParams, NoState]) -> Handler:
    async def handle(api: Api, call: Call) -> Response:
        async with api.store.transaction() as tx:
            vm = await _find(tx, call)
            lifecycle.follow(vm.status.state, event, vm.name)
            await need_holder(tx, vm)
            return accepted(await call.submit(api, tx, workflow, vm, VmParams(vm=vm.id)))

    return handle


async def migrate(api: Api, call: Call) -> Response:
    """Move a running one, if the destination will have it."""
    body = call.need(VmMigrate)
    async with api.store.transaction() as tx:
        vm = await _find(tx, call)
        await refuse_while(
            tx,
            vm.id,
            f"VM {vm.name} is on the move",
            "vm.migrate",
            remedy="Wait for that job's end, or cancel it.",
        )
        lifecycle.follow(vm.status.state, VmEvent.MIGRATE, vm.name)
        check_nothing_pending(vm)
        await need_holder(tx, vm)
        hosts = await capacity.all_hosts(tx, but_vm=vm.id)
        placement.choose_destination(vm, hosts, body.to, await capacity.ties(tx, vm))
        # Without a name the workflow chooses when its turn has come; that one will do now was checked.
        return accepted(await call.submit(api, tx, MIGRATE_VM, vm, MigrateParams(vm=vm.id, to=body.to)))


async def clone(api: Api, call: Call) -> Response:
    """Write the copy (stopped, with MACs and addresses of its own) and the job that fills its volumes."""
    body = call.need(VmClone)
    async with api.store.transaction() as tx:
        vm = await _find(tx, call)
        if vm.status.state in ALIVE:
            raise ConflictError(
                f"VM {vm.name} is {vm.status.state}, and only a stopped one is copied",
                field="state",
                value=vm.status.state,
                remedy="Stop it first.",
            )
        if await tx.vms.named(body.name) is not None:
            raise tx.vms.taken(body.name)
        await need_disks(tx, vm, vm.spec.disks)
        owner = Owner(new_id(VmId), body.name)
        disks = await _copy_disks(tx, vm, owner)
        blank = [vnic.model_copy(update={"mac": None, "ip": None}) for vnic in vm.spec.vnics]
        vnics = await resolve_vnics(tx, owner.id, blank)
        update: dict[str, Any] = {"disks": disks.disks, "vnics": vnics.vnics, "running": False, "template": False}
        copy = Vm(
            name=body.name,
            id=owner.id,
            generation=1,
            labels=vm.labels,
            description=vm.description,
            created=tx.now,
            spec=vm.spec.model_copy(update=update),
            status=VmStatus(since=tx.now, addresses=[str(vnic.ip) for vnic in vnics.vnics]),
        )
        await write_disks(tx, owner, disks)
        await tx.vms.insert(copy)
        api.rights.created(tx, copy.id)
        await tx.networks.hold(copy.id, vnics.addresses)
        await tx.emit("vm.created", f"vm/{copy.name}", copy.id, f"cloned from {vm.name}")
        params = CloneParams(vm=vm.id, name=copy.name, clone=copy.id)
        return accepted(await call.submit(api, tx, CLONE_VM, vm, params))


async def _copy_disks(tx: Transaction, vm: Vm, owner: Owner) -> Disks:
    copies = Disks([], [], [])
    for disk in vm.spec.disks:
        if disk.volume is None:
            continue
        old = await tx.volumes.get(disk.volume)
        volume = await own_volume(tx, owner, old.spec.model_copy(update={"image": None}), copies.made)
        copies.made.append(volume)
        copies.disks.append(disk.model_copy(update={"volume": volume.id, "size": old.spec.size, "keep": False}))
    return copies


async def _find(tx: Transaction, call: Call) -> Vm:
    vm = await tx.vms.find(call.name)
    await refuse_while(tx, vm.id, "the VM is being deleted", *CLEARED, remedy="Leave it: it is going.")
    return vm


def _stop_params(vm: Vm, body: VmStop) -> StopParams:
    return StopParams(vm=vm.id, force=body.force, timeout=body.timeout)


async def _want_running(tx: Transaction, vm: Vm, *, running: bool) -> Vm:
    if vm.spec.running == running:
        return vm
    return await tx.vms.set_spec(vm.id, vm.spec.model_copy(update={"running": running}))


async def _check_fits(view: View, vm: Vm, spec: VmSpec) -> None:
    hosts = await capacity.all_hosts(view, but_vm=vm.id)
    placement.place(spec, hosts, await capacity.ties(view, vm, starts=spec.running))


async def _check_starts(view: View, vm: Vm, host: HostName | None) -> None:
    """Raises what keeps the VM from starting on this host (none: on any)."""
    await need_disks(view, vm, vm.spec.disks)
    lease = await view.leases.get(vm.id)
    hosts = await capacity.all_hosts(view, but_vm=vm.id)
    home = None if lease is None or is_over(lease) else lease.host
    placement.choose_start(vm, hosts, host, home, await capacity.ties(view, vm))


HANDLERS: dict[str, Handler] = {
    "vm.list": list_,
    "vm.show": show,
    "vm.create": create,
    "vm.edit": vm_edit.edit,
    "vm.delete": delete,
    "vm.start": start,
    "vm.stop": stop,
    "vm.restart": restart,
    "vm.reset": _signal(VmEvent.RESET, RESET_VM),
    "vm.pause": _signal(VmEvent.PAUSE, PAUSE_VM),
    "vm.resume": _signal(VmEvent.RESUME, RESUME_VM),
    "vm.migrate": migrate,
    "vm.clone": clone,
}
