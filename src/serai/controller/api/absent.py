"""Deleting what is on a host that is offline: refused at once; by force it is forgotten, and cleared away later."""

from __future__ import annotations

from typing import Any

from serai.controller.api.call import Call
from serai.controller.store import Transaction
from serai.schema.commands.base import BodyT, Command
from serai.schema.errors import UnavailableError
from serai.schema.host import Host, HostState


def away(call: Call, hosts: list[Host]) -> list[Host]:
    """Those of the hosts that are offline, if the caller says `force`. Raises UnavailableError if he does not."""
    offline = [host for host in hosts if host.status.state is not HostState.ONLINE]
    if not offline or call.query.get("force"):
        return offline
    names = ", ".join(host.name for host in offline)
    noun = call.endpoint.partition(".")[0]
    raise UnavailableError(
        f"{noun} {call.name} is on {names}, offline",
        field="host",
        value=names,
        remedy="Start the agent there. If it is gone for good: "
        f"serai {noun} delete {call.name} --force forgets it, and the host removes it if it ever comes back.",
    )


async def clean_later(call: Call, tx: Transaction, host: Host, command: Command[BodyT, Any], body: BodyT) -> None:
    """Have the host remove it when it is back."""
    what = f"{call.endpoint.partition('.')[0]} {call.name}"
    why = call.reason or f"it was deleted by force while {host.name} was {host.status.state}"
    await tx.leftovers.add(host.name, command, body, what, why)
