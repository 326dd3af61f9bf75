"""The handlers of all resources: one that lists, one that shows, and one that has a service do the rest.

What a service gets follows from the endpoint's row: the transaction, who asks, the resource of the path, the body and
the query. Those whose row is not all of it have a handler of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Response

from serai.controller.api.call import Api, Call, Handler, accepted, nothing, page
from serai.controller.api.references import named, respond
from serai.controller.services import (
    capacity,
    host_actions,
    image_actions,
    network_actions,
    pool_actions,
    vm_actions,
    vm_create,
    vm_edit,
    volume_actions,
)
from serai.controller.store import RawPage, View
from serai.controller.store.resources import Document
from serai.schema.errors import ConflictError
from serai.schema.job import Job
from serai.schema.vm import VmEdit

Items = list[Any]
"""Resources of one kind."""
NOUNS = ("host", "pool", "volume", "image", "network", "vm")
REFERENCES = ("host", "pool", "vm")
"""Query parameters that take the name or id of a resource."""

ACTIONS = {
    **host_actions.ACTIONS,
    **pool_actions.ACTIONS,
    **volume_actions.ACTIONS,
    **image_actions.ACTIONS,
    **network_actions.ACTIONS,
    **vm_actions.ACTIONS,
    **vm_create.ACTIONS,
}
"""Endpoint name to the service that does it."""

COMPUTED: dict[str, Callable[[Api, View, Items], Awaitable[Items]]] = {
    "host": lambda api, view, items: host_actions.shown(view, items, api.heard),
    "pool": lambda _, view, items: capacity.with_volumes(view, items),
    "network": lambda _, view, items: capacity.with_use(view, items),
}
"""Kinds of which some of the status is computed when it is shown."""


async def list_(api: Api, call: Call) -> Response:
    """A page by name, narrowed by the query."""
    async with api.store.read() as view:
        rows = view.of(call.endpoint.noun)
        narrow = {key: await _as_stored(view, key, text) for key, text in call.query.items()}
        found = await rows.page(call.limit, call.cursor, narrow)
        items: list[Document] = found.items
        if call.endpoint.noun in COMPUTED:
            models = [rows.model.model_validate(item) for item in items]
            items = [model.model_dump(mode="json") for model in await COMPUTED[call.endpoint.noun](api, view, models)]
        return page(RawPage(await named(view, rows.model, items), found.next))


async def _as_stored(view: View, key: str, text: str) -> str:
    """What columns hold for what the caller wrote."""
    if key not in REFERENCES:
        return text
    rows = view.of(key)
    return str(getattr(await rows.find(text, key), rows.reference))


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return await _respond(api, view, call, await view.of(call.endpoint.noun).find(call.name))


async def perform(api: Api, call: Call) -> Response:
    """Have the endpoint's service do it, and answer with what it returns."""
    async with api.store.transaction() as tx:
        found = [await tx.of(call.endpoint.noun).find(call.name)] if call.name else []
        body = [] if call.body is None else [call.body]
        result = await ACTIONS[call.endpoint.name](tx, call.requester(api), *found, *body, **call.query)
        return await _respond(api, tx, call, result)


async def edit_vm(api: Api, call: Call) -> Response:
    """Its job shows the changes as the caller wrote them."""
    async with api.store.transaction() as tx:
        vm, body, sent = await tx.vms.find(call.name), call.body, call.sent
        assert isinstance(body, VmEdit)
        assert isinstance(sent, VmEdit)
        return accepted(await vm_edit.edit(tx, call.requester(api), vm, body, sent))


async def delete_host(api: Api, call: Call) -> Response:
    """What waits for the host is cancelled once it is gone."""
    async with api.store.transaction() as tx:
        waiting = await host_actions.delete(tx, await tx.hosts.find(call.name))
    for job in waiting:
        # One that has ended since needs no asking; one that is past undoing ends by itself.
        with contextlib.suppress(ConflictError):
            await api.engine.cancel(job.id)
    return nothing()


async def _respond(api: Api, view: View, call: Call, result: Any) -> Response:
    if result is None:
        return nothing()
    if isinstance(result, Job):
        return accepted(result)
    items = await COMPUTED[call.endpoint.noun](api, view, [result]) if call.endpoint.noun in COMPUTED else [result]
    return await respond(view, items[0], call.endpoint.status)


HANDLERS: dict[str, Handler] = {
    **{f"{noun}.list": list_ for noun in NOUNS},
    **{f"{noun}.show": show for noun in NOUNS},
    **dict.fromkeys(ACTIONS, perform),
    "vm.edit": edit_vm,
    "host.delete": delete_host,
}
