"""What a handler gets, what it may answer with, and what it works with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from typing import Any, Protocol

from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import to_json

from serai.controller.jobs.engine import Engine
from serai.controller.services.requester import Requester
from serai.controller.services.rights import Rights
from serai.controller.store import RawPage, Store
from serai.schema.endpoints import Endpoint
from serai.schema.errors import InvalidError, SeraiError
from serai.schema.ids import HostName
from serai.schema.image import Image
from serai.schema.job import Job
from serai.schema.text import one_line
from serai.schema.vm import Vm

VERSION = metadata.version("serai")

REASON = "x-serai-reason"
REASON_MAX = 1024
REASON_SHOWN = 80
NUMBER_MAX = 2**63 - 1
"""The largest number that the store can compare with; what a caller sends as an event's or a job's number."""


class Console(Protocol):
    """A VM's console, joined. `ended`: why there is no more to read, once that is so."""

    ended: str

    async def read(self, n: int) -> bytes:
        """Up to `n` bytes; empty at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        ...

    async def drain(self) -> None:
        """Send what is queued."""
        ...

    def close(self) -> None:
        """Leave it."""
        ...


OpenConsole = Callable[[Vm], Awaitable[Console]]
ReceiveUpload = Callable[[Image, AsyncIterator[bytes], int], Awaitable[None]]
"""Takes an image's content to its end; returns once it is safe, raises SeraiError if it cannot be used.

The number is that of its bytes, 0 if it was not told.
"""


def _never(_: HostName) -> datetime | None:
    return None


@dataclass(frozen=True)
class Api:
    """What handlers work with. Without `open_console` or `receive_upload` those routes answer `unsupported`."""

    store: Store
    engine: Engine
    rights: Rights
    open_console: OpenConsole | None = None
    receive_upload: ReceiveUpload | None = None
    heard: Callable[[HostName], datetime | None] = _never
    """When a host, by name, spoke last; none if it has not since the controller was started."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server goes down: open event streams end then."""


@dataclass(frozen=True)
class Call:
    """One checked request. `name` is the path's `{name}`; `query` holds only what was given.

    `body` refers by id to what `sent` names: the same document as the caller wrote it, for jobs to show.
    """

    endpoint: Endpoint
    principal: str
    name: str
    body: BaseModel | None
    sent: BaseModel | None
    query: Mapping[str, Any]
    headers: Mapping[str, str]
    reason: str = ""
    """Why it is asked for, in the caller's own words."""
    limit: int = 100
    cursor: str | None = None

    def requester(self, api: Api) -> Requester:
        """The caller, as services know him."""
        return Requester(api.engine, api.rights, self.principal, self.reason)


def reason_of(headers: Mapping[str, str]) -> str:
    """One line of text from the header X-Serai-Reason, which is UTF-8. Raises InvalidError."""
    raw = headers.get(REASON, "")
    try:
        text = one_line(raw.encode("latin-1").decode())
    except ValueError as error:
        wrong = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error).partition(";")[0]
    else:
        if len(text) <= REASON_MAX:
            return text
        wrong = f"it has {len(text)} characters"
    raise InvalidError(
        f"the reason cannot be kept: {wrong}",
        field="X-Serai-Reason",
        value=repr(raw[:REASON_SHOWN]),
        remedy=f"Send one line of text in UTF-8, up to {REASON_MAX} characters.",
    )


Handler = Callable[[Api, Call], Awaitable[Response]]


def answer(model: BaseModel) -> Response:
    """What refers to no resource; one that does is answered by `references.respond`."""
    return Response(model.model_dump_json(), media_type="application/json")


def page(found: RawPage) -> Response:
    """A page of a list, sent as it is."""
    return Response(to_json({"items": found.items, "next": found.next}), media_type="application/json")


def accepted(job: Job) -> Response:
    """202 with the job, and where to follow it."""
    return Response(
        job.model_dump_json(), 202, headers={"Location": f"/v1/jobs/{job.id}"}, media_type="application/json"
    )


def nothing() -> Response:
    """204."""
    return Response(status_code=204)


def refusal(error: SeraiError) -> Response:
    """An error as the API sends it."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    # Half a surrogate pair, which JSON can spell and UTF-8 cannot, is told as its escape.
    fields = error.info.model_dump()
    told = {key: text and text.encode(errors="backslashreplace").decode() for key, text in fields.items()}
    return JSONResponse({"error": told}, error.status, headers)
