"""The client of the REST table: every call derives from `schema/endpoints.py`, over a Unix socket or http(s).

Errors come back as the very classes that the server raised. A server that cannot be reached is an UnavailableError.
Long actions answer a `Job`; `wait_job` follows it by the event stream (`client/follow.py`) to its end.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from serai.client import follow
from serai.client.answers import parse, raise_for
from serai.client.context import Context
from serai.schema.endpoints import ENDPOINTS, Endpoint
from serai.schema.errors import InvalidError, UnavailableError
from serai.schema.job import Event, Job
from serai.schema.resource import Page

Query = Mapping[str, str | int | bool | None]
PathArgs = Mapping[str, str] | str | None
"""Values for the path's `{…}`; a plain string stands for `{name}`."""
OnUpdate = Callable[[Job], None]
OnBytes = Callable[[int], None]

TIMEOUT = 30.0
"""Seconds for one answer: only plain calls wait, long actions are jobs."""
KEEP_ALIVE = 5.0
"""Seconds for which an idle connection is kept. The server keeps it longer: it must not close one while it is used."""
PAGE = 200
UPLOAD_CHUNK = 1 << 20


class Client:
    """A connection to one API. Use it as an async context manager."""

    def __init__(self, context: Context, *, timeout: float = TIMEOUT) -> None:
        self.context = context
        token = context.token()
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.tls = tls_of(context)
        limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE)
        if context.socket is not None:
            # No TLS there: httpx would read all the machine's CAs, which takes longer than most calls.
            transport = httpx.AsyncHTTPTransport(uds=str(context.socket), verify=False, limits=limits)
        else:
            transport = httpx.AsyncHTTPTransport(verify=self.tls or True, limits=limits)
        self.http = httpx.AsyncClient(
            transport=transport,
            base_url=(context.url or "http://serai").rstrip("/"),
            headers=self.headers,
            timeout=timeout,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def call(
        self,
        name: str,
        path_args: PathArgs = None,
        body: BaseModel | Mapping[str, Any] | None = None,
        query: Query | None = None,
    ) -> Any:
        """Call one endpoint of the table; the answer is its `result` model, a `Page` of it, or None.

        Only fields that were set are sent, so that an edit changes what it names and nothing else. Raises SeraiError.
        """
        endpoint = ENDPOINTS[name]
        response = await self._send(endpoint, path_args, body, query)
        if endpoint.result is None or response.status_code == httpx.codes.NO_CONTENT:
            return None
        model = Page[endpoint.result] if endpoint.paged else endpoint.result  # type: ignore[name-defined]  # made at run time from the table
        return parse(model, response.content)

    async def items(self, name: str, query: Query | None = None, *, limit: int | None = None) -> AsyncIterator[Any]:
        """Every item of a paged list, page after page; at most `limit` of them."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = await self.call(name, query={**(query or {}), "limit": size, "cursor": cursor})
            for item in page.items[:left]:
                yield item
            if left is not None:
                left -= len(page.items)
            cursor = page.next
            if cursor is None:
                return

    async def job(self, job_id: str) -> Job:
        job: Job = await self.call("job.show", job_id)
        return job

    async def wait_job(self, job_id: str, on_update: OnUpdate | None = None) -> Job:
        """Follow a job to its end and return it, however it ended; `on_update` sees every state that was observed.

        Raises NotFoundError, and UnavailableError if the controller stays away; the job goes on regardless.
        """
        return await follow.wait_job(self, job_id, on_update)

    def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Events after a sequence number (none: from now on), for ever; reconnects by itself and misses none."""
        return follow.EventStream(self, after).events()

    async def upload(self, name: str, file: Path, on_bytes: OnBytes | None = None) -> Any:
        """Send a file as the content of an image; `on_bytes` is told how many bytes went with each chunk.

        Returns the answer's JSON, or None. Raises SeraiError, OSError.
        """
        size = file.stat().st_size
        try:
            response = await self.http.put(
                f"/v1/images/{quote(name, safe='')}/content",
                content=_chunks(file, on_bytes),
                headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
                timeout=httpx.Timeout(TIMEOUT, read=None, write=None),
            )
        except httpx.TransportError as error:
            raise self.unreachable(error) from error
        raise_for(response.status_code, response.content)
        return response.json() if response.content else None

    async def _send(
        self, endpoint: Endpoint, path_args: PathArgs, body: BaseModel | Mapping[str, Any] | None, query: Query | None
    ) -> httpx.Response:
        if isinstance(body, BaseModel):
            content: str | None = body.model_dump_json(exclude_unset=True)
        else:
            content = None if body is None else json.dumps(body)
        params = {key: _text(value) for key, value in (query or {}).items() if value is not None}
        try:
            response = await self.http.request(
                endpoint.method,
                fill(endpoint.path, path_args),
                content=content,
                params=params,
                headers={"Content-Type": "application/json"} if content is not None else None,
            )
        except httpx.TransportError as error:
            raise self.unreachable(error) from error
        raise_for(response.status_code, response.content)
        return response

    def unreachable(self, error: Exception) -> UnavailableError:
        """The error for a controller that does not answer."""
        reason = str(error) or type(error).__name__
        return UnavailableError(
            f"the controller does not answer: {reason}",
            field="context",
            value=self.context.where,
            remedy="See that it runs, or choose another context: serai context list.",
        )


def tls_of(context: Context) -> ssl.SSLContext | None:
    """The TLS settings of a context; none where the way has no TLS. Raises InvalidError for a bad CA file."""
    if context.url is None or not context.url.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=None if context.ca is None else str(context.ca))
    except OSError as error:
        raise InvalidError(
            f"the CA file cannot be used: {error.strerror or error}",
            field="ca",
            value=context.ca,
            remedy="Point the context to a PEM file: serai context set NAME --ca FILE.",
        ) from error


def fill(path: str, path_args: PathArgs) -> str:
    """The path with its `{…}` filled in and quoted. Raises InvalidError for what would lead to another path."""
    values = {"name": path_args} if isinstance(path_args, str) else (path_args or {})
    for key, value in values.items():
        if value in ("", ".", ".."):
            raise InvalidError("this names nothing", field=key, value=repr(value), remedy="Give a name or an id.")
    return path.format(**{key: quote(value, safe="") for key, value in values.items()})


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


async def _chunks(file: Path, on_bytes: OnBytes | None) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, UPLOAD_CHUNK):
            yield chunk
            if on_bytes is not None:
                on_bytes(len(chunk))
