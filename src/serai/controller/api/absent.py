"""Deleting what is on a host that is offline: refused at once; by force it is forgotten, and cleared away later."""

from __future__ import annotations

from serai.controller.api.call import Api, Call
from serai.controller.store import Transaction
from serai.controller.workflows.cleaning import CLEAN_HOST, CleanParams
from serai.schema.errors import UnavailableError
from serai.schema.host import Host, HostState
from serai.schema.ids import ImageId, PoolId, VolumeId


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


async def clean_later(
    api: Api,
    call: Call,
    tx: Transaction,
    host: Host,
    *,
    pool: PoolId | None = None,
    volume: VolumeId | None = None,
    image: ImageId | None = None,
) -> None:
    """Write the job that has the host remove it when it is back."""
    what = f"{call.endpoint.partition('.')[0]} {call.name}"
    await api.engine.submit(
        tx,
        CLEAN_HOST,
        f"host/{host.name}",
        host.id,
        CleanParams(host=host.id, what=what, pool=pool, volume=volume, image=image),
        requested_by=call.principal,
        reason=call.reason or f"{what} was deleted by force while {host.name} was offline",
    )
