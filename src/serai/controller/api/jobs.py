"""Jobs."""

from __future__ import annotations

from fastapi import Response

from serai.controller.api.call import Api, Call, Handler, answer, page


async def list_(api: Api, call: Call) -> Response:
    """Newest first."""
    state, target = call.query.get("state"), call.query.get("target")
    async with api.store.read() as view:
        return page(await view.jobs.page(call.limit, call.cursor, state, target))


async def show(api: Api, call: Call) -> Response:
    """One job as it is now."""
    async with api.store.read() as view:
        return answer(await view.jobs.get(call.name))


async def cancel(api: Api, call: Call) -> Response:
    """Ask it to stop and undo."""
    return answer(await api.engine.cancel(call.name))


HANDLERS: dict[str, Handler] = {"job.list": list_, "job.show": show, "job.cancel": cancel}
