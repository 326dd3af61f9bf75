"""Hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fastapi import Response

from serai.controller import capacity
from serai.controller.api.call import Api, Call, Handler, accepted, nothing
from serai.controller.api.checks import need_online
from serai.controller.api.references import respond, respond_models
from serai.controller.services import fencing
from serai.controller.store import Transaction, View
from serai.controller.workflows.resources import CONFIRM_UPLINK, TAKE_UPLINK, HostParams, TakeParams
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.host import Host, HostEdit, HostFence, HostLeftover, HostSpec, HostState
from serai.schema.network import UplinkTake
from serai.schema.units import format_size


async def list_(api: Api, call: Call) -> Response:
    """With what is committed on each."""
    async with api.store.read() as view:
        found, following = await view.hosts.models(call.limit, call.cursor)
        return await respond_models(view, await _filled(api, view, found), following)


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return await respond(view, (await _filled(api, view, [await view.hosts.find(call.name)]))[0])


async def _filled(api: Api, view: View, hosts: Sequence[Host]) -> list[Host]:
    """The hosts with what is committed on each, when each spoke last, and what it has yet to clear away."""
    found = []
    for host in await capacity.with_committed(view, hosts):
        heard = api.heard(host.name) or host.status.seen
        left = [
            HostLeftover(what=row.what, command=row.command, why=row.why, since=row.since)
            for row in await view.leftovers.of_host(host.name)
        ]
        update = {"seen": heard, "leftovers": left}
        found.append(host.model_copy(update={"status": host.status.model_copy(update=update)}))
    return found


async def edit(api: Api, call: Call) -> Response:
    """Say what placement may use of it, label it, describe it: the next VM that is placed goes by it."""
    body = call.need(HostEdit)
    changes = {name: getattr(body, name) for name in sorted(body.model_fields_set) if getattr(body, name) is not None}
    async with api.store.transaction() as tx:
        host = await tx.hosts.find(call.name)
        _check_reserve(host, body.memory_reserve)
        spec = host.spec.model_copy(update={name: changes[name] for name in HostSpec.model_fields if name in changes})
        own = {name: value for name, value in changes.items() if name in ("labels", "description")}
        update = {**own, "spec": spec, "generation": host.generation + (spec != host.spec)}
        changed = host.model_copy(update=update)
        if changed != host:
            await tx.hosts.replace(changed)
            await tx.emit("host.changed", f"host/{host.name}", host.id, "changed: " + ", ".join(changes))
        return await respond(tx, (await _filled(api, tx, [changed]))[0])


def _check_reserve(host: Host, reserve: int | None) -> None:
    facts = host.status.facts
    if reserve is not None and facts is not None and reserve >= facts.memory:
        raise InvalidError(
            f"host {host.name} has {format_size(facts.memory)} of memory in all: nothing would be left for VMs",
            field="memory_reserve",
            value=format_size(reserve),
            remedy="Reserve less; to keep new VMs away: serai host edit --no-schedulable.",
        )


async def take(api: Api, call: Call) -> Response:
    """Put a bridge on an uplink; it goes by itself unless confirmed."""
    body = call.need(UplinkTake)
    async with api.store.transaction() as tx:
        host = await tx.hosts.find(call.name)
        need_online(host, "host")
        active = await tx.jobs.active(host.id, "host.take")
        if active:
            raise ConflictError(
                f"an uplink of {host.name} is being taken already",
                field="job",
                value=active[0].id,
                remedy="Wait for that job's end.",
            )
        params = TakeParams(host=host.id, uplink=body.uplink, bridge=body.bridge, confirm_within=body.confirm_within)
        return accepted(await call.submit(api, tx, TAKE_UPLINK, host, params))


async def confirm(api: Api, call: Call) -> Response:
    """Keep the bridge."""
    async with api.store.transaction() as tx:
        host = await tx.hosts.find(call.name)
        need_online(host, "host")
        if await tx.jobs.last(host.id, "host.take") is None:
            raise ConflictError(
                f"nothing is to be confirmed on {host.name}",
                field="host",
                value=host.name,
                remedy="Take an uplink first: serai host network take.",
            )
        return accepted(await call.submit(api, tx, CONFIRM_UPLINK, host, HostParams(host=host.id)))


async def fence(api: Api, call: Call) -> Response:
    """End what a host that is off held."""
    body = call.need(HostFence)
    async with api.store.transaction() as tx:
        host = await tx.hosts.find(call.name)
        if not body.is_off:
            raise InvalidError(
                f"to fence {host.name} is your word that the machine is off: its VMs are started elsewhere without its"
                " answer, and one that still runs there would run twice and damage its disks",
                field="is_off",
                value=body.is_off,
                remedy=f"Switch it off or cut its power, then: serai host fence {host.name} --is-off.",
            )
        fenced = await fencing.fence(tx, api.rights, host, by=call.principal, reason=body.reason or call.reason)
        return await respond(tx, (await _filled(api, tx, [fenced]))[0])


async def delete(api: Api, call: Call) -> Response:
    """Forget a host that is gone and has nothing that is wanted; what it was still to clear away goes with it."""
    async with api.store.transaction() as tx:
        host = await tx.hosts.find(call.name)
        if host.status.state is HostState.ONLINE:
            raise ConflictError(
                f"host {host.name} is online",
                field="host",
                value=host.name,
                remedy="Stop its agent first, and see that it does not start again: it would join anew.",
            )
        await _refuse_used(tx, host)
        for image in await tx.images.all():
            if host.name in image.status.hosts:
                left = [name for name in image.status.hosts if name != host.name]
                await tx.images.update_status(image.id, hosts=left)
        waiting = await tx.jobs.active(host.id)
        await tx.leftovers.forget(host.name)
        await tx.lineage.forget(host.name)
        await tx.hosts.delete(host.id)
        await tx.emit("host.deleted", f"host/{host.name}", host.id)
    for job in waiting:
        # One that has ended since needs no asking; one that is past undoing ends by itself.
        with contextlib.suppress(ConflictError):
            await api.engine.cancel(job.id)
    return nothing()


async def _refuse_used(tx: Transaction, host: Host) -> None:
    """Raises ConflictError that names the VMs and pools that are there, or are to be."""
    leases = {lease.vm for lease in await tx.leases.on_host(host.name)}
    leases |= {lease.vm for lease in await tx.leases.offered() if lease.offered_to == host.name}
    vms = [vm.name for vm in await tx.vms.all() if vm.id in leases or host.name in (vm.status.host, vm.spec.host)]
    pools = [pool.name for pool in await tx.pools.on_host(host.name)]
    if vms or pools:
        found = [f"{what} {', '.join(names)}" for what, names in (("VMs", vms), ("pools", pools)) if names]
        raise ConflictError(
            f"host {host.name} has {' and '.join(found)}",
            field="host",
            value=host.name,
            remedy="Delete them first: serai vm delete, serai pool delete --force.",
        )


HANDLERS: dict[str, Handler] = {
    "host.list": list_,
    "host.show": show,
    "host.edit": edit,
    "host.fence": fence,
    "host.delete": delete,
    "host.take": take,
    "host.confirm": confirm,
}
