"""Following what happens: the event stream, and jobs by it.

Events are numbered. A stream that breaks is opened again from the last number seen, so none is missed and none is seen
twice. A job is read again whenever the stream reports a change of it, and whenever the stream was (re)opened or shows
life, so that changes in between are seen as well. If the stream is refused (a proxy may do that), the job is polled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import ValidationError

from serai.client.answers import raise_for
from serai.schema.errors import SeraiError, UnavailableError, UnsupportedError
from serai.schema.job import Event, Job, JobState

RETRY_FIRST = 0.1
RETRY_MOST = 3.0
"""Seconds between attempts to reach a controller that went away: it may only be restarting."""
PATIENCE = 120.0
"""Seconds without any answer after which following gives up."""
SILENCE = 60.0
"""Seconds without a byte after which a stream counts as dead (a peer that vanished sends no goodbye)."""
POLL = 1.0
GOING_ON = frozenset(state.value for state in JobState if not state.ended)


class Connection(Protocol):
    """What following needs of a client."""

    @property
    def http(self) -> httpx.AsyncClient: ...

    def unreachable(self, error: Exception) -> UnavailableError:
        """The error for a controller that does not answer."""

    async def job(self, job_id: str) -> Job:
        """One job as it is now."""


class StreamRefusedError(UnsupportedError):
    """The server does not stream events to us; lists still work."""


class EventStream:
    """One subscriber. `last` is the number of the last event handed out."""

    def __init__(self, client: Connection, after: int | None = None, *, patience: float = PATIENCE) -> None:
        self.client = client
        self.last = after
        self._patience = patience

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events alone."""
        async with aclosing(self.signals()) as signals:
            async for signal in signals:
                if signal is not None:
                    yield signal

    async def signals(self) -> AsyncGenerator[Event | None, None]:
        """Events, and None whenever the stream was opened or showed life without an event.

        Raises StreamRefusedError, UnauthorizedError, and UnavailableError: at once if the first attempt fails, later
        after `patience` seconds without a connection.
        """
        retry = Retry(self._patience)
        ever = False
        while True:
            try:
                async with aclosing(self._connection()) as signals:
                    async for signal in signals:
                        ever = True
                        retry.succeeded()
                        yield signal
            except UnavailableError as error:
                if not ever:
                    raise
                await retry.pause(error)
            else:
                # The server ended the stream in good order: it is going down, or wants its connections spread.
                await retry.pause(UnavailableError("the event stream ended"))

    async def _connection(self) -> AsyncGenerator[Event | None, None]:
        params = {} if self.last is None else {"after": str(self.last)}
        headers = {"Accept": "text/event-stream"}
        if self.last is not None:
            headers["Last-Event-ID"] = str(self.last)
        http = self.client.http
        request = http.build_request(
            "GET", "/v1/events", params=params, headers=headers, timeout=httpx.Timeout(10.0, read=SILENCE)
        )
        try:
            response = await http.send(request, stream=True)
        except httpx.TransportError as error:
            raise self.client.unreachable(error) from error
        try:
            await self._accept(response)
            yield None
            async for message in EventSource(response).aiter_sse():
                event = self._take(message)
                if event is not None or not message.data:
                    yield event
        except httpx.TransportError as error:
            raise self.client.unreachable(error) from error
        finally:
            await response.aclose()

    async def _accept(self, response: httpx.Response) -> None:
        kind = response.headers.get("content-type", "")
        if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_ACCEPTABLE):
            raise StreamRefusedError(f"the server refuses the event stream ({response.status_code})")
        if response.is_error:
            raise_for(response.status_code, await response.aread())
        if not kind.startswith("text/event-stream"):
            raise StreamRefusedError(f"the server answers {kind or 'nothing'} instead of an event stream")

    def _take(self, message: ServerSentEvent) -> Event | None:
        if not message.data:
            return None
        try:
            event = Event.model_validate_json(message.data)
        except ValidationError as error:
            raise SeraiError(
                "an event was not understood", remedy="Use the same version of Serai on both ends."
            ) from error
        if self.last is not None and event.seq <= self.last:
            return None
        self.last = event.seq
        return event


class Retry:
    """Growing pauses between attempts, up to a limit."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._pause = RETRY_FIRST
        self._since: float | None = None

    def succeeded(self) -> None:
        """Forget earlier failures."""
        self._pause = RETRY_FIRST
        self._since = None

    async def pause(self, error: SeraiError) -> None:
        """Wait before the next attempt, or raise `error` when patience is over."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since > self._patience:
            raise error
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, RETRY_MOST)


async def wait_job(client: Connection, job_id: str, on_update: Callable[[Job], None] | None = None) -> Job:
    """See `Client.wait_job`."""
    watch = _Watch(client, job_id, on_update)
    try:
        async with aclosing(EventStream(client).signals()) as signals:
            async for signal in signals:
                if (signal is None or watch.needs(signal)) and (job := await watch.look()).state.ended:
                    return job
    except StreamRefusedError:
        pass
    while not (job := await watch.look()).state.ended:
        await asyncio.sleep(POLL)
    return job


class _Watch:
    """Reads the job and reports each change to the caller; waits for a controller that is away for a while."""

    def __init__(self, client: Connection, job_id: str, on_update: Callable[[Job], None] | None) -> None:
        self._client = client
        self._id = job_id
        self._on_update = on_update
        self._job: Job | None = None

    def needs(self, event: Event) -> bool:
        """Whether to read the job again. Each read costs the controller time that it could spend on the job."""
        if not _concerns(event, self._id):
            return False
        return self._on_update is not None or event.data.get("state") not in GOING_ON

    async def look(self) -> Job:
        """Read the job."""
        job = await self._read()
        if job != self._job:
            self._job = job
            if self._on_update is not None:
                self._on_update(job)
        return job

    async def _read(self) -> Job:
        retry = Retry(PATIENCE)
        while True:
            try:
                return await self._client.job(self._id)
            except UnavailableError as error:
                if self._job is None:
                    raise
                await retry.pause(error)


def _concerns(event: Event, job_id: str) -> bool:
    return event.kind.startswith("job.") and job_id in (
        event.resource_id,
        event.resource.rpartition("/")[2],
        event.data.get("job"),
    )
