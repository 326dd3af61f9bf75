"""A small API server for tests of clients: its routes derive from the REST table, its resources live in memory.

It keeps no promise of the controller's but the protocol's: pages, errors, jobs with steps, numbered events, SSE with
resume, a console that echoes, uploads. Tests steer it: hold jobs in mid-way, break or refuse event streams, go away.
It runs in a thread of its own, since the command line under test has an event loop of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

from serai.lib.pki import TlsFiles
from serai.schema.endpoints import ENDPOINTS, Endpoint
from serai.schema.errors import ConflictError, InvalidError, NotFoundError, SeraiError, UnauthorizedError
from serai.schema.ids import JobId
from serai.schema.job import Event, Job, JobState, Step, StepState

STEPS = ("check", "work", "finish")
MIGRATION = {
    "mode": "precopy",
    "total_s": 1.25,
    "downtime_ms": 12.0,
    "rounds": 3,
    "bytes_sent": 140 << 20,
    "phases": {"prepare": 0.2, "copy": 0.9, "switch": 0.02, "clean-up": 0.13},
}
STATES: dict[str, dict[str, Any]] = {
    "vm.start": {"state": "running"},
    "vm.restart": {"state": "running"},
    "vm.stop": {"state": "stopped"},
    "vm.pause": {"state": "paused"},
    "vm.resume": {"state": "running"},
}


class FakeApi:
    """Use as a context manager: serves on `socket` meanwhile, or with `tls` on a free port of 127.0.0.1 (`url`)."""

    def __init__(self, socket: Path, token: str | None = None, tls: TlsFiles | None = None) -> None:
        self.socket = socket
        self.token = token
        self.tls = tls
        self.resources: dict[str, dict[str, dict[str, Any]]] = {}
        self.jobs: dict[str, Job] = {}
        self.events: list[Event] = []
        self.requests: list[tuple[str, str, Any]] = []
        """Endpoint name, resource name and body of each call."""
        self.failure: SeraiError | None = None
        """What the next jobs fail with, at their second step."""
        self.results: dict[str, dict[str, Any]] = {}
        """What jobs end with, by the endpoint's name."""
        self.refuse_streams = False
        self.streams = 0
        """How many event streams were opened."""
        self.hold = threading.Event()
        """Jobs pass their second step only while this is set."""
        self.hold.set()
        self.uploads: dict[str, bytes] = {}
        self.queries: list[tuple[str, dict[str, str]]] = []
        """Of each request: its endpoint, and what was in its query."""
        self._number = 0
        self._generation = 0

    def __enter__(self) -> Self:
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app(),
                uds=None if self.tls else str(self.socket),
                port=0,
                ssl_certfile=str(self.tls.cert) if self.tls else None,
                ssl_keyfile=str(self.tls.key) if self.tls else None,
                ws="websockets-sansio",
                log_level="critical",
                timeout_graceful_shutdown=1,
            )
        )
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="fake API")
        self._thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self.break_streams()
        self._server.should_exit = True
        self._thread.join(10)
        self.socket.unlink(missing_ok=True)

    @property
    def url(self) -> str:
        """Where it listens with TLS."""
        return f"https://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def break_streams(self) -> None:
        """End all event streams, as a restarted controller would."""
        self._generation += 1

    def add(self, kind: str, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None) -> dict[str, Any]:
        """Put a resource there as if it had been created."""
        item = {
            "kind": kind,
            "name": name,
            "id": self._id(),
            "generation": 1,
            "labels": {},
            "description": "",
            "created": datetime.now(UTC).isoformat(),
            "spec": spec,
            "status": status or {},
        }
        self.resources.setdefault(kind, {})[name] = item
        return item

    def emit(self, kind: str, resource: str, resource_id: str = "", message: str = "", /, **data: Any) -> Event:
        """Record an event; streams send it."""
        event = Event(
            seq=len(self.events) + 1,
            time=datetime.now(UTC),
            kind=kind,
            resource=resource,
            resource_id=resource_id,
            message=message,
            data=data,
        )
        self.events.append(event)
        return event

    def _serve(self, ready: threading.Event) -> None:
        async def main() -> None:
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.005)
            ready.set()
            await serving
            mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            await asyncio.gather(*mine, return_exceptions=True)

        asyncio.run(main())

    def _id(self) -> str:
        self._number += 1
        return f"{self._number:012x}"

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/images/{name}/content", self._upload, methods=["PUT"], response_model=None)
        app.add_api_websocket_route("/v1/vms/{name}/console", self._console)
        app.add_exception_handler(SeraiError, _answer_error)
        for endpoint in ENDPOINTS.values():
            app.add_api_route(endpoint.path, self._route(endpoint), methods=[endpoint.method], response_model=None)
        return app

    def _route(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            self._authorize(request.headers.get("authorization"))
            name = request.path_params.get("name", "")
            raw = await request.body()
            self.requests.append((endpoint.name, name, json.loads(raw) if raw else None))
            self.queries.append((endpoint.name, dict(request.query_params)))
            kind, _, verb = endpoint.name.partition(".")
            if endpoint.name == "event.list":
                return self._events(request)
            if kind == "job":
                return self._job_call(verb, name)
            if verb == "list":
                return _page(list(self.resources.get(kind, {}).values()), request)
            item = None if verb == "create" else self._find(kind, name)
            if verb == "show":
                return _json(item)
            return self._change(endpoint, item, _body(endpoint, raw))

        return handle

    def _authorize(self, header: str | None) -> None:
        if self.token is not None and header != f"Bearer {self.token}":
            raise UnauthorizedError("no valid token came with the request", remedy="Give the context a token file.")

    def _find(self, kind: str, name: str) -> dict[str, Any]:
        for item in self.resources.get(kind, {}).values():
            if name in (item["name"], item["id"]):
                return item
        raise NotFoundError(f"there is no such {kind}", field=kind, value=name, remedy=f"See: serai {kind} list.")

    def _change(self, endpoint: Endpoint, item: dict[str, Any] | None, body: dict[str, Any]) -> Response:
        kind, _, verb = endpoint.name.partition(".")
        name = item["name"] if item else body.get("name", "")
        if item is None and name in self.resources.get(kind, {}):
            raise ConflictError(
                f"a {kind} of this name exists", field="name", value=name, remedy="Choose another name."
            )
        if not endpoint.job:
            self._carry_out(kind, verb, item, body)
            return _json(self.resources[kind][name]) if endpoint.result else Response(status_code=204)
        job = Job(
            id=JobId(self._id()),
            kind=endpoint.name,
            target=f"{kind}/{name}",
            requested_by="test",
            steps=[Step(name=step) for step in STEPS],
            created=datetime.now(UTC),
        )
        self._put(job)
        self._running = asyncio.create_task(self._run(job.id, lambda: self._carry_out(kind, verb, item, body)))
        return _json(job.model_dump(mode="json"), 202, {"Location": f"/v1/jobs/{job.id}"})

    def _carry_out(self, kind: str, verb: str, item: dict[str, Any] | None, body: dict[str, Any]) -> Any:
        if item is None:
            status = {"state": "running", "host": "h1"} if kind == "vm" else {}
            made = self.add(kind, body["name"], body["spec"], status)
            made |= {key: body[key] for key in ("labels", "description") if key in body}
        elif verb == "delete":
            del self.resources[kind][item["name"]]
        elif verb == "migrate":
            source, target = item["status"].get("host", "h1"), body.get("to") or "h2"
            item["status"]["host"] = target
            return {**MIGRATION, "source": source, "destination": target}
        elif verb == "edit":
            if "rename" in body:
                del self.resources[kind][item["name"]]
                item["name"] = body.pop("rename")
                self.resources[kind][item["name"]] = item
            top: dict[str, Any] = {key: body.pop(key) for key in ("labels", "description") if key in body}
            item.update(top, generation=item["generation"] + 1, spec={**item["spec"], **body})
        item and item["status"].update(STATES.get(f"{kind}.{verb}", {}))
        return None

    async def _run(self, job_id: str, work: Callable[[], Any]) -> None:
        now = datetime.now(UTC)
        self._put(self.jobs[job_id].model_copy(update={"state": JobState.RUNNING, "started": now}))
        result = None
        for index, _ in enumerate(STEPS):
            self._step(job_id, index, StepState.RUNNING)
            while index == 1 and not self.hold.is_set():
                await asyncio.sleep(0.005)
                if self.jobs[job_id].state is JobState.CANCELLING:
                    self._step(job_id, index, StepState.UNDONE)
                    return self._end(job_id, JobState.CANCELLED)
            if index == 1 and self.failure is not None:
                self._step(job_id, index, StepState.FAILED)
                return self._end(job_id, JobState.FAILED, error=self.failure.info)
            if index == 1:
                result = self.results.get(self.jobs[job_id].kind, work())
            self._step(job_id, index, StepState.DONE)
        return self._end(job_id, JobState.DONE, result=result)

    def _step(self, job_id: str, index: int, state: StepState) -> None:
        job, now = self.jobs[job_id], datetime.now(UTC)
        steps = list(job.steps)
        ended = None if state is StepState.RUNNING else now
        steps[index] = steps[index].model_copy(
            update={"state": state, "started": steps[index].started or now, "ended": ended}
        )
        self._put(job.model_copy(update={"steps": steps, "progress": (index + 1) / len(steps)}))

    def _end(self, job_id: str, state: JobState, **fields: Any) -> None:
        self._put(self.jobs[job_id].model_copy(update={"state": state, "ended": datetime.now(UTC), **fields}))

    def _put(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.emit("job.state", job.target, job.id, str(job.state), job=job.id, state=job.state.value)

    def _job_call(self, verb: str, name: str) -> Response:
        if verb == "list":
            return _json({"items": [job.model_dump(mode="json") for job in reversed(self.jobs.values())], "next": None})
        if name not in self.jobs:
            raise NotFoundError("there is no such job", field="job", value=name, remedy="See: serai job list.")
        if verb == "cancel":
            if self.jobs[name].state.ended:
                raise ConflictError("the job has ended", field="job", value=name, remedy="Nothing is left to stop.")
            self._put(self.jobs[name].model_copy(update={"state": JobState.CANCELLING}))
        return _json(self.jobs[name].model_dump(mode="json"))

    def _events(self, request: Request) -> Response:
        after = request.query_params.get("after")
        if "text/event-stream" not in request.headers.get("accept", ""):
            return _page(self._narrowed(request), request)
        if self.refuse_streams:
            return Response(status_code=406)
        self.streams += 1
        position = len(self.events) if after is None else int(after)
        return StreamingResponse(self._stream(position), media_type="text/event-stream")

    def _narrowed(self, request: Request) -> list[dict[str, Any]]:
        query = request.query_params
        kind, resource = query.get("kind"), query.get("resource")
        found = [
            event.model_dump(mode="json")
            for event in self.events[int(query.get("after") or 0) :]
            if (kind is None or f"{event.kind}.".startswith(f"{kind}."))
            and (resource is None or resource in (event.resource, event.resource_id))
        ]
        return found[-int(query["last"]) :] if "last" in query else found

    async def _stream(self, position: int) -> AsyncGenerator[str, None]:
        generation = self._generation
        yield ": open\n\n"
        while generation == self._generation:
            for event in self.events[position:]:
                yield f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
                position = event.seq
            await asyncio.sleep(0.005)

    async def _upload(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.uploads[name] = await request.body()
        return _json({"sha256": hashlib.sha256(self.uploads[name]).hexdigest()})

    async def _console(self, socket: WebSocket) -> None:
        name = socket.path_params["name"]
        if name not in self.resources.get("vm", {}):
            await socket.send_denial_response(_error(NotFoundError("there is no such vm", field="vm", value=name)))
            return
        await socket.accept()
        await socket.send_bytes(b"login: ")
        while (message := await socket.receive())["type"] == "websocket.receive":
            await socket.send_bytes(message["bytes"])
            if message["bytes"] == b"exit\n":
                await socket.close()
                return


def _body(endpoint: Endpoint, raw: bytes) -> dict[str, Any]:
    if endpoint.body is None or not raw:
        return {}
    try:
        model: BaseModel = endpoint.body.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidError(first["msg"], field=where, value=first.get("input")) from error
    return model.model_dump(mode="json", exclude_unset=True)


def _page(items: list[dict[str, Any]], request: Request) -> Response:
    begin = int(request.query_params.get("cursor", 0))
    end = begin + int(request.query_params.get("limit", 100))
    return _json({"items": items[begin:end], "next": str(end) if end < len(items) else None})


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _error(error: SeraiError) -> Response:
    return Response(error.info.model_dump_json(), error.status, media_type="application/json")


async def _answer_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, SeraiError):
        raise error
    return _error(error)
