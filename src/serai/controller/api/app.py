"""The app: one generic binder turns each row of the REST table into a route; streams are added by hand.

FastAPI parses and checks path, query and body, and writes the OpenAPI document from the same models. Answers are sent
as they are: they were checked when they were written.
"""

from __future__ import annotations

import inspect
import logging
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from serai.controller.api import describe, events, jobs, resources, streams
from serai.controller.api.auth import PRINCIPAL, Auth, Guard
from serai.controller.api.body import BodyRoute, strict
from serai.controller.api.call import NUMBER_MAX, VERSION, Api, Call, Handler, reason_of, refusal
from serai.controller.api.invalid import explain, refuse_unprintable
from serai.controller.api.references import resolved
from serai.schema.endpoints import ENDPOINTS, Endpoint
from serai.schema.errors import TREE, ErrorInfo, InvalidError, NotFoundError, SeraiError, from_info
from serai.schema.job import JobState
from serai.schema.resource import Page
from serai.schema.vm import VmState

log = logging.getLogger(__name__)

HANDLERS: dict[str, Handler] = {**resources.HANDLERS, **jobs.HANDLERS, **events.HANDLERS}
"""Endpoint name to what it does."""

QUERY: dict[str, Any] = {
    "force": bool,
    "after": Annotated[int, Query(ge=0, le=NUMBER_MAX)],
    "last": Annotated[int, Query(ge=1, le=NUMBER_MAX)],
}
"""Types of query parameters that are not plain text."""
STATES: dict[str, Any] = {"vm.list": VmState, "job.list": JobState}


class ErrorBody(BaseModel):
    """What every refusal looks like."""

    error: ErrorInfo


def create_app(api: Api, auth: Auth) -> FastAPI:
    """The whole API. Raises RuntimeError if a row of the table has no handler."""
    if HANDLERS.keys() != ENDPOINTS.keys():
        raise RuntimeError(f"handlers and REST table differ: {sorted(HANDLERS.keys() ^ ENDPOINTS.keys())}")
    app = FastAPI(
        title="Serai",
        version=VERSION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ErrorBody, "description": "A refusal: what, on what, why, and what to do"}},
    )
    streams.add_routes(app, api)
    for endpoint in ENDPOINTS.values():
        _bind(app, endpoint, HANDLERS[endpoint.name], api)
    app.add_exception_handler(SeraiError, _serai_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    app.add_middleware(Guard, auth=auth)
    return app


def _bind(app: FastAPI, endpoint: Endpoint, handler: Handler, api: Api) -> None:
    default_body = _default(endpoint.body)

    async def route(request: Request, **given: Any) -> Response:
        known = {key: given[key] for key in endpoint.query if given.get(key) is not None}
        _refuse_unknown(request, endpoint)
        reason = reason_of(request.headers)
        body = sent = given.get("body") or default_body
        if sent is not None:
            refuse_unprintable(sent.model_dump())
            body = await resolved(api.store, sent)
        call = Call(
            endpoint=endpoint,
            principal=request.scope[PRINCIPAL],
            name=given.get("name", ""),
            body=body,
            sent=sent,
            query=known,
            headers=request.headers,
            reason=reason,
            limit=given.get("limit", 100),
            cursor=given.get("cursor"),
        )
        return await handler(api, call)

    route.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # FastAPI reads the parameters from here
        _parameters(endpoint, required=default_body is None), return_annotation=Response
    )
    result = endpoint.result
    if result is not None and endpoint.paged:
        result = Page[result]  # type: ignore[valid-type]  # made at run time from the table
    app.router.add_api_route(
        endpoint.path,
        route,
        route_class_override=BodyRoute,
        methods=[endpoint.method],
        name=endpoint.name,
        summary=endpoint.summary,
        tags=[endpoint.noun],
        response_model=result,
        status_code=endpoint.status,
        dependencies=[describe.BEARER],
        responses=describe.responses(endpoint),
        openapi_extra=describe.headers(endpoint),
    )


def _parameters(endpoint: Endpoint, *, required: bool) -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    found = [inspect.Parameter("request", kind, annotation=Request)]
    if "{name}" in endpoint.path:
        found.append(inspect.Parameter("name", kind, annotation=Annotated[str, Path(max_length=80)]))
    if endpoint.body is not None:
        annotation = strict(endpoint.body if required else endpoint.body | None)
        default = inspect.Parameter.empty if required else None
        found.append(inspect.Parameter("body", kind, annotation=annotation, default=default))
    if endpoint.paged:
        limit = Annotated[int, Query(ge=1, le=1000)]
        found.append(inspect.Parameter("limit", kind, annotation=limit, default=100))
        found.append(inspect.Parameter("cursor", kind, annotation=str | None, default=None))
    for name in endpoint.query:
        kind_of = STATES.get(endpoint.name, str) if name == "state" else QUERY.get(name, str)
        found.append(inspect.Parameter(name, kind, annotation=kind_of | None, default=None))
    return found


def _default(body: type[BaseModel] | None) -> BaseModel | None:
    """A body whose fields all have defaults may be left out."""
    try:
        return None if body is None else body()
    except ValidationError:
        return None


def _refuse_unknown(request: Request, endpoint: Endpoint) -> None:
    allowed = {*endpoint.query, *(("limit", "cursor") if endpoint.paged else ())}
    for key, value in request.query_params.items():
        if key not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise InvalidError(
                f"{endpoint.name} has no query parameter {key}",
                field=key,
                value=value,
                remedy=f"Leave it out; there is: {known}.",
            )


async def _serai_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, SeraiError)
    return refusal(error)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal(explain(error.errors(), error.body))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    if status == 404:
        return refusal(
            NotFoundError("there is no such route", field="path", value=path, remedy="See /v1/openapi.json.")
        )
    if status == 405:
        return _wrong_method(request)
    kind = next((kind for kind in TREE.values() if kind.status == status), InvalidError)
    message = f"{error.detail}: {request.method} {path}"
    response = refusal(from_info(ErrorInfo(code=kind.code, message=message, remedy="See /v1/openapi.json.")))
    response.status_code = status
    return response


def _wrong_method(request: Request) -> Response:
    """405 with what the path does take; Starlette itself names only its first route's methods."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    fits = [route.methods or set() for route in routes if route.path_regex.match(request.url.path)]
    methods = ", ".join(sorted(set().union(*fits)))
    error = InvalidError(
        "the path takes no such method",
        field="method",
        value=f"{request.method} {request.url.path}",
        remedy=f"Use {methods}: see /v1/openapi.json.",
    )
    response = refusal(error)
    response.status_code = 405
    response.headers["Allow"] = methods
    return response


async def _fault(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    message = f"the controller failed at {request.method} {request.url.path}: {type(error).__name__}"
    return refusal(SeraiError(message, remedy="Its log has the details; please report it."))
