"""Events: as pages, or as a stream (SSE) that a client resumes with `?after=N` or Last-Event-ID and misses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Response
from fastapi.responses import StreamingResponse

from serai.controller.api.call import NUMBER_MAX, Api, Call, Handler, page
from serai.controller.store.events import Narrow
from serai.schema.errors import InvalidError

HEARTBEAT = 15.0
"""Seconds of silence after which an empty message is sent: proxies and clients give up a silent connection.

It is no comment, which clients do not get to see; a browser passes over it, as it has no data.
"""
BATCH = 500
BREATH = 0.02
"""Seconds between two batches: what happens in a burst goes out together."""


async def list_(api: Api, call: Call) -> Response:
    """A page, or the stream, by what the client accepts. `last` counts from the newest; its pages go by the cursor."""
    after = call.query.get("after")
    narrowed = [name for name in ("kind", "resource", "last") if name in call.query]
    if narrowed and "text/event-stream" in call.headers.get("accept", ""):
        raise InvalidError(
            "the stream sends all events",
            field=narrowed[0],
            value=call.query[narrowed[0]],
            remedy="Leave it out, and choose among what comes; a list (Accept: application/json) is narrowed.",
        )
    if "text/event-stream" in call.headers.get("accept", ""):
        return StreamingResponse(
            _stream(api, _resume_from(api, call, after)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    if call.cursor is not None:
        after = _number("cursor", call.cursor)
    narrow = Narrow(call.query.get("kind"), call.query.get("resource"))
    async with api.store.read() as view:
        if "last" in call.query and call.cursor is None:
            after = max(after or 0, await view.events.before_last(call.query["last"], narrow))
        return page(await view.events.page(after or 0, call.limit, narrow))


def _resume_from(api: Api, call: Call, after: int | None) -> int:
    last = call.headers.get("last-event-id")
    if last:
        return _number("Last-Event-ID", last)
    # Without a number: from now on. It is taken here, before the answer starts, so that nothing falls in between.
    return api.store.bell.newest if after is None else after


def _number(field: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= NUMBER_MAX):
        raise InvalidError("not an event's number", field=field, value=text, remedy="Use the number of an event.")
    return int(text)


async def _stream(api: Api, seen: int) -> AsyncIterator[str]:
    yield ": events follow\n\n"
    stopping = asyncio.ensure_future(api.stopping.wait())
    try:
        while not stopping.done():
            found = api.store.bell.recent(seen, BATCH)
            if found is None:
                async with api.store.read() as view:
                    found = await view.events.after(seen, BATCH)
            if found:
                seen = found[-1][0]
                yield "".join(f"id: {seq}\ndata: {text}\n\n" for seq, text in found)
                await asyncio.sleep(BREATH)
                continue
            more = asyncio.ensure_future(api.store.bell.beyond(seen))
            try:
                done, _ = await asyncio.wait({more, stopping}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            finally:
                more.cancel()
            if not done:
                yield "event: alive\n\n"
    finally:
        stopping.cancel()


HANDLERS: dict[str, Handler] = {"event.list": list_}
