"""Reading a request's body: of bounded length, JSON by its type, and validated by Pydantic from the very bytes.

Pydantic's parser itself refuses what is not UTF-8, half a surrogate pair, and more than 200 levels of nesting.
Validation is strict, so that `0` is not taken for `false`, nor `"1"` for 1; sizes, rates and durations keep the
spellings that their own types parse. Uploads of images are not read here: they stream, and may be as long as a disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Body, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, WrapValidator

from serai.lib.invalid import shown
from serai.schema.errors import MediaTypeError, TooLargeError
from serai.schema.units import format_size

BODY_MAX = 1 << 20
"""Bytes. The largest thing that is sent is a VM with user-data: 128 KiB, at most 768 once JSON escapes it."""
WANTED = "application/json"
_JSON = re.compile(r'application/([a-z0-9.-]+\+)?json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)


def strict(model: Any) -> Any:
    """The annotation of a route's body: `model`, read strictly from the bytes that `BodyRoute` hands over."""
    adapter = TypeAdapter(model)
    return Annotated[model, WrapValidator(lambda content, _: adapter.validate_json(content, strict=True)), Body()]


class BodyRoute(APIRoute):
    """A route that reads the body before FastAPI does, and hands it over as it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def read_first(request: Request) -> Response:
            return await handler(_Read(request, await _content(request)) if self.body_field else request)

        return read_first


class _Read(Request):
    def __init__(self, request: Request, content: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._content = content

    async def body(self) -> bytes:
        return self._content

    json = body


async def _content(request: Request) -> bytes:
    """Raises TooLargeError, MediaTypeError."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY_MAX:
            raise TooLargeError(
                f"a body has at most {format_size(BODY_MAX)}",
                field="body",
                value=f"more than {BODY_MAX} bytes",
                remedy="Send less; the content of an image goes to /v1/images/NAME/content, however long it is.",
            )
    given = request.headers.get("content-type")
    if content and (given is None or not _JSON.fullmatch(given.strip())):
        raise MediaTypeError(
            f"the body's type is {shown(given)!r}, not {WANTED}" if given else "the body's type is not given",
            field="Content-Type",
            value=shown(given) if given else "none",
            remedy=f"Send JSON with the header Content-Type: {WANTED}.",
        )
    return bytes(content)
