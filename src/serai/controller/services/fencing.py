"""The fence: an operator's word that a host is off, and what follows for what it held."""

from __future__ import annotations

from serai.controller.services import vms
from serai.controller.services.rights import ALARM, Rights
from serai.controller.store import Transaction
from serai.core.observed import Event
from serai.schema.errors import ConflictError
from serai.schema.host import Fence, Host, HostState
from serai.schema.vm import HOST_SILENT


async def fence(tx: Transaction, rights: Rights, host: Host, *, by: str, reason: str) -> Host:
    """End the leases that the host holds; its VMs can be started elsewhere. Raises ConflictError for one that answers.

    A VM that it was sending away stays as it is shown: the journal of the destination decides, and its job asks it.
    """
    if host.status.state is HostState.ONLINE:
        raise ConflictError(
            f"host {host.name} is online: its agent answers, and it may run VMs",
            field="host",
            value=host.name,
            remedy="Switch the machine off, and wait until it is shown as offline: serai host list.",
        )
    if host.status.state is HostState.FENCED:
        return host
    fenced = await tx.hosts.update_status(
        host.id, state=HostState.FENCED, fence=Fence(since=tx.now, by=by, reason=reason)
    )
    ended = await rights.fence(tx, host.name)
    text = f"{host.name} is fenced by {by}: it is off, and runs nothing" + (f" ({reason})" if reason else "")
    await tx.emit(
        "host.fenced", f"host/{host.name}", host.id, text, severity=ALARM, state=HostState.FENCED.value, by=by
    )
    for lease in ended:
        if lease.offered_to is None:
            crashed = await vms.observe(tx, lease.vm, Event.FENCED, f"its host {lease.host} was fenced")
            if crashed is not None:
                await vms.set_conditions(tx, crashed, HOST_SILENT, [])
    return fenced
