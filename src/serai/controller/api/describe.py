"""What the OpenAPI document says beyond what the models tell: who is let in, headers, and other media than JSON."""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from fastapi.security import HTTPBearer

from serai.schema.endpoints import Endpoint

BEARER = Depends(
    HTTPBearer(auto_error=False, description="The token of the controller's token file; a CLI context names that file.")
)
"""It only describes: `auth.Guard` is what lets in, before anything of a request is read."""

_REASON = {
    "name": "X-Serai-Reason",
    "in": "header",
    "description": "Why it is asked for, in your own words: one line of UTF-8. The job shows it.",
    "schema": {"type": "string", "maxLength": 1024},
}
_LAST_EVENT = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "With `Accept: text/event-stream`: go on after this event's number; it counts before `after`.",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_LOCATION = {"description": "Where to follow the job.", "schema": {"type": "string"}}
_STREAM = {
    "schema": {
        "type": "string",
        "description": "With `Accept: text/event-stream`: every event after the given number, then each as it happens. "
        "`id` is an event's number, `data` the event as JSON.",
    }
}

UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The image file itself.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

CONSOLE: dict[int | str, dict[str, Any]] = {
    101: {
        "description": "With `Upgrade: websocket`: the VM's serial console. Each message that is sent, binary or "
        "text, is typed in; what the VM prints comes as binary messages."
    },
    426: {"description": "It was not asked for as a WebSocket."},
}


def responses(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    """What an endpoint's answers have beside their JSON."""
    if endpoint.job:
        return {202: {"headers": {"Location": _LOCATION}}}
    if endpoint.name == "event.list":
        return {200: {"content": {"text/event-stream": _STREAM}}}
    return {}


def headers(endpoint: Endpoint) -> dict[str, Any]:
    """The headers that an endpoint takes."""
    if endpoint.name == "event.list":
        return {"parameters": [_LAST_EVENT]}
    return {"parameters": [_REASON]} if endpoint.job else {}
