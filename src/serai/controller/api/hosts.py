"""Hosts."""

from __future__ import annotations

from fastapi import Response

from serai.controller import capacity
from serai.controller.api.call import Api, Call, Handler, accepted, answer, page_of
from serai.controller.api.checks import need_online
from serai.schema.errors import ConflictError


async def list_(api: Api, call: Call) -> Response:
    """With what is committed on each."""
    async with api.store.read() as view:
        found, following = await view.hosts.models(call.limit, call.cursor)
        return page_of(await capacity.with_committed(view, found), following)


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return answer((await capacity.with_committed(view, [await view.hosts.find(call.name)]))[0])


async def take(api: Api, call: Call) -> Response:
    """Put a bridge on an uplink; it goes by itself unless confirmed."""
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
        return accepted(await call.submit(api, tx, host))


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
        return accepted(await call.submit(api, tx, host))


HANDLERS: dict[str, Handler] = {"host.list": list_, "host.show": show, "host.take": take, "host.confirm": confirm}
