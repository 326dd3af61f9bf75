"""Deleting what is on a host that is offline: refused at once; by force it is forgotten, and cleared away later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serai.controller.services.requester import Requester
from serai.controller.store import Transaction
from serai.schema.commands.base import BodyT, Command
from serai.schema.errors import UnavailableError
from serai.schema.host import Host, HostState
from serai.schema.ids import HostName
from serai.schema.resource import Resource


async def leave_out(
    tx: Transaction,
    requester: Requester,
    item: Resource[Any, Any],
    hosts: Sequence[Host],
    command: Command[BodyT, Any],
    body: BodyT,
    *,
    force: bool,
) -> list[HostName]:
    """Those of the hosts that are offline, if the caller says `force`: each carries out the command when it is back.

    Raises UnavailableError if he does not.
    """
    offline = [host for host in hosts if host.status.state is not HostState.ONLINE]
    if offline and not force:
        names = ", ".join(host.name for host in offline)
        raise UnavailableError(
            f"{item.kind} {item.name} is on {names}, offline",
            field="host",
            value=names,
            remedy="Start the agent there. If it is gone for good: "
            f"serai {item.kind} delete {item.name} --force forgets it, and the host removes it if it ever comes back.",
        )
    for host in offline:
        why = requester.reason or f"it was deleted by force while {host.name} was {host.status.state}"
        await tx.leftovers.add(host.name, command, body, f"{item.kind} {item.name}", why)
    return [host.name for host in offline]
