"""What a request's body may be, before anything looks into it: JSON in UTF-8, not too long and not too deep.

A parser meets only what was bounded here, so that no body can take the controller's memory or stack. Uploads of images
are none of this module's business: they stream, and may be as long as a disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serai.controller.api.call import refusal
from serai.controller.api.checks import refuse_unprintable
from serai.controller.api.invalid import shown
from serai.schema.errors import InvalidError, MediaTypeError, SeraiError, TooLargeError
from serai.schema.units import format_size

BODY_MAX = 1 << 20
"""Bytes. The largest thing that is sent is a VM with user-data: 128 KiB, at most 768 once JSON escapes it."""
DEPTH_MAX = 32
"""Objects and lists within one another; the deepest model has five. Parsers work on the stack, which ends sooner."""
WANTED = "application/json"
_UPLOAD = re.compile(r"/v1/images/[^/]+/content")
_JSON = re.compile(r"application/([a-z0-9.-]+\+)?json")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""Strings, so that brackets in them are passed over, and brackets. What is no JSON is for the parser to refuse."""


class BodyGate:
    """ASGI middleware: reads the whole body of a request, refuses what cannot be one, and hands it on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or answer 413, 415 or 422."""
        if scope["type"] != "http" or (scope["method"] == "PUT" and _UPLOAD.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            check_length(headers.get("content-length"))
            messages = await _read(receive)
            content = b"".join(message.get("body", b"") for message in messages)
            if content:
                check_type(headers.get("content-type"))
                check_text(content)
                check_depth(content)
                check_pairs(content)
        except SeraiError as error:
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, _again(messages, receive), send)


def check_length(told: str | None) -> None:
    """Refuse by what the request says, before it is read. Raises TooLargeError."""
    if told is not None and told.isdecimal() and int(told[:20]) > BODY_MAX:
        raise _too_large(f"{told[:20]} bytes")


def check_type(given: str | None) -> None:
    """Raises MediaTypeError for what is not JSON in UTF-8."""
    kind, _, parameters = (given or "").partition(";")
    charset = re.search(r'charset\s*=\s*"?([^";\s]+)', parameters, re.IGNORECASE)
    if _JSON.fullmatch(kind.strip().lower()) and (charset is None or charset[1].lower() in ("utf-8", "utf8")):
        return
    raise MediaTypeError(
        f"the body is {shown(given)!r}, and {WANTED} is wanted" if given else f"the body's type is not told: {WANTED}?",
        field="Content-Type",
        value=shown(given) if given else "none",
        remedy=f"Send JSON with the header Content-Type: {WANTED}.",
    )


def check_text(content: bytes) -> None:
    """Raises InvalidError for what is not UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise InvalidError(
            f"the body is not UTF-8: byte {error.start} cannot be read",
            field="body",
            value=f"0x{content[error.start]:02x}",
            remedy="Send JSON in UTF-8.",
        ) from error


def check_depth(content: bytes) -> None:
    """Raises InvalidError for more than `DEPTH_MAX` levels."""
    depth = 0
    for at, step in _steps(content):
        depth += step
        if depth > DEPTH_MAX:
            raise InvalidError(
                f"the body has more than {DEPTH_MAX} levels of lists and objects at character {at}",
                field="body",
                value=f"level {depth}",
                remedy="Nothing that Serai knows is as deep: see /v1/openapi.json.",
            )


def check_pairs(content: bytes) -> None:
    """Refuse half a surrogate pair: validation would fail on it, since UTF-8 cannot spell it. Raises InvalidError."""
    if _SURROGATE.search(content) is None:
        return
    try:
        parsed = json.loads(content)
    except ValueError:
        return  # what is no JSON is for the parser to refuse
    refuse_unprintable(parsed)


def _steps(content: bytes) -> Iterator[tuple[int, int]]:
    for found in _TOKENS.finditer(content):
        first = found[0][:1]
        if first != b'"':
            yield found.start(), 1 if first in b"[{" else -1


async def _read(receive: Receive) -> list[Message]:
    messages: list[Message] = []
    length = 0
    while True:
        message = await receive()
        messages.append(message)
        length += len(message.get("body", b""))
        if length > BODY_MAX:
            raise _too_large(f"more than {BODY_MAX} bytes")
        if message["type"] != "http.request" or not message.get("more_body", False):
            return messages


def _again(messages: list[Message], receive: Receive) -> Receive:
    left = iter(messages)

    async def read() -> Message:
        return next(left, None) or await receive()

    return read


def _too_large(told: str) -> TooLargeError:
    return TooLargeError(
        f"a body has at most {format_size(BODY_MAX)}",
        field="body",
        value=told,
        remedy="Send less; the content of an image goes to /v1/images/NAME/content, however long it is.",
    )
