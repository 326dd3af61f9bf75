"""Hosts: what they are for, their uplinks, fencing and forgetting them; and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from serai.controller.services import capacity, fencing
from serai.controller.services.checks import need_online
from serai.controller.services.requester import Action, Requester
from serai.controller.store import Transaction, View
from serai.controller.workflows.uplinks import CONFIRM_UPLINK, TAKE_UPLINK, HostParams, TakeParams
from serai.core.edits import given
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.host import Host, HostEdit, HostFence, HostLeftover, HostSpec, HostState
from serai.schema.ids import HostName
from serai.schema.job import Job
from serai.schema.network import UplinkTake
from serai.schema.units import format_size


async def shown(view: View, hosts: Sequence[Host], heard: Callable[[HostName], datetime | None]) -> list[Host]:
    """The hosts with what is committed on each, when each spoke last, and what it has yet to clear away."""
    found = []
    for host in await capacity.with_committed(view, hosts):
        left = [
            HostLeftover(what=row.what, command=row.command, why=row.why, since=row.since)
            for row in await view.leftovers.of_host(host.name)
        ]
        update = {"seen": heard(host.name) or host.status.seen, "leftovers": left}
        found.append(host.model_copy(update={"status": host.status.model_copy(update=update)}))
    return found


async def edit(tx: Transaction, _: Requester, host: Host, body: HostEdit) -> Host:
    """Say what placement may use of it, label it, describe it: the next VM that is placed goes by it."""
    _check_reserve(host, body.memory_reserve)
    own, spec_changes = given(body, "description", "labels"), given(body, *HostSpec.model_fields)
    spec = host.spec.model_copy(update=spec_changes)
    changed = host.model_copy(update={**own, "spec": spec, "generation": host.generation + (spec != host.spec)})
    if changed != host:
        await tx.hosts.replace(changed)
        names = ", ".join(sorted({**own, **spec_changes}))
        await tx.emit("host.changed", f"host/{host.name}", host.id, "changed: " + names)
    return changed


def _check_reserve(host: Host, reserve: int | None) -> None:
    facts = host.status.facts
    if reserve is not None and facts is not None and reserve >= facts.memory:
        raise InvalidError(
            f"host {host.name} has {format_size(facts.memory)} of memory in all: nothing would be left for VMs",
            field="memory_reserve",
            value=format_size(reserve),
            remedy="Reserve less; to keep new VMs away: serai host edit --no-schedulable.",
        )


async def take(tx: Transaction, requester: Requester, host: Host, body: UplinkTake) -> Job:
    """Put a bridge on an uplink; it goes by itself unless confirmed."""
    need_online(host, "host")
    active = await tx.jobs.active(host.id, "host.take")
    if active:
        raise ConflictError(
            f"an uplink of {host.name} is being taken already",
            field="job",
            value=active[0].id,
            remedy="Wait for that job's end.",
        )
    return await requester.submit(tx, TAKE_UPLINK, host, TakeParams(host=host.id, **dict(body)))


async def confirm(tx: Transaction, requester: Requester, host: Host) -> Job:
    """Keep the bridge."""
    need_online(host, "host")
    if await tx.jobs.last(host.id, "host.take") is None:
        raise ConflictError(
            f"nothing is to be confirmed on {host.name}",
            field="host",
            value=host.name,
            remedy="Take an uplink first: serai host network take.",
        )
    return await requester.submit(tx, CONFIRM_UPLINK, host, HostParams(host=host.id))


async def fence(tx: Transaction, requester: Requester, host: Host, body: HostFence) -> Host:
    """End what a host that is off held."""
    if not body.is_off:
        raise InvalidError(
            f"to fence {host.name} is your word that the machine is off: its VMs are started elsewhere without its"
            " answer, and one that still runs there would run twice and damage its disks",
            field="is_off",
            value=body.is_off,
            remedy=f"Switch it off or cut its power, then: serai host fence {host.name} --is-off.",
        )
    return await fencing.fence(tx, requester.rights, host, by=requester.name, reason=body.reason or requester.reason)


async def delete(tx: Transaction, host: Host) -> list[Job]:
    """Forget a host that is gone and has nothing that is wanted; what it was still to clear away goes with it.

    Returns the jobs that wait for it, to be cancelled once that is committed.
    """
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
    return waiting


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


ACTIONS: dict[str, Action] = {"host.edit": edit, "host.fence": fence, "host.take": take, "host.confirm": confirm}
