"""Jobs."""

from __future__ import annotations

from fastapi import Response

from serai.controller.api.call import NUMBER_MAX, Api, Call, Handler, answer, page
from serai.schema.errors import InvalidError


async def list_(api: Api, call: Call) -> Response:
    """Newest first."""
    if call.cursor is not None and (not call.cursor.isascii() or len(call.cursor) >= len(str(NUMBER_MAX))):
        raise InvalidError("not a cursor of this list", field="cursor", value=call.cursor, remedy="Leave it out.")
    state = call.query.get("state")
    async with api.store.read() as view:
        return page(
            await view.jobs.page(call.limit, call.cursor, state.value if state else None, call.query.get("target"))
        )


async def show(api: Api, call: Call) -> Response:
    """One job as it is now."""
    async with api.store.read() as view:
        return answer(await view.jobs.get(call.name))


async def cancel(api: Api, call: Call) -> Response:
    """Ask it to stop and undo."""
    return answer(await api.engine.cancel(call.name))


HANDLERS: dict[str, Handler] = {"job.list": list_, "job.show": show, "job.cancel": cancel}
