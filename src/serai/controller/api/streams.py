"""The routes that stream, and so are not in the REST table: console, upload, health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocket, WebSocketDisconnect

from serai.controller.api import describe
from serai.controller.api.call import VERSION, Api, Console, answer, nothing, refusal
from serai.controller.api.references import respond
from serai.controller.services.image_actions import check_upload
from serai.schema.errors import InvalidError, SeraiError, UnsupportedError
from serai.schema.image import Image
from serai.schema.resource import Frozen
from serai.schema.vm import Vm

CHUNK = 1 << 16
GOING_AWAY = 1001
CONSOLE = "/v1/vms/{name}/console"
REASON_MAX = 123
"""Bytes of a reason for the end that the protocol has room for."""


class Health(Frozen):
    """What the controller says of itself to everybody."""

    status: str
    version: str


def add_routes(app: FastAPI, api: Api) -> None:
    """Put them into the app."""

    async def health() -> Response:
        return answer(Health(status="ok", version=VERSION))

    async def content(name: str, request: Request) -> Response:
        return await _upload(api, name, request)

    async def console(socket: WebSocket, name: str) -> None:
        await _console(api, socket, name)

    app.add_api_route(
        "/v1/health", health, methods=["GET"], summary="Whether the controller answers", response_model=Health
    )
    app.add_api_route(
        "/v1/images/{name}/content",
        content,
        methods=["PUT"],
        summary="Upload an image",
        tags=["image"],
        response_model=Image,
        dependencies=[describe.BEARER],
        openapi_extra=describe.UPLOAD,
    )
    app.add_api_websocket_route(CONSOLE, console)
    app.add_api_route(
        CONSOLE,
        _no_socket,
        methods=["GET"],
        summary="A VM's serial console, as a WebSocket",
        tags=["vm"],
        status_code=101,
        response_model=None,
        dependencies=[describe.BEARER],
        responses=describe.CONSOLE,
    )


async def _no_socket(name: str) -> Response:
    """What a plain GET of a console is answered; it is here also so that the API's description has the path."""
    error = UnsupportedError(
        "a console is a WebSocket",
        field="Upgrade",
        remedy=f"Ask for it with `Upgrade: websocket`, or use the CLI: serai vm console {name}.",
    )
    response = refusal(error)
    response.status_code = 426
    response.headers["Upgrade"] = "websocket"
    return response


async def _upload(api: Api, name: str, request: Request) -> Response:
    if api.receive_upload is None:
        raise UnsupportedError("this controller takes no uploads")
    async with api.store.read() as view:
        image = await view.images.find(name)
    check_upload(image)
    size = request.headers.get("content-length", "0")
    await api.receive_upload(image, _body(request), int(size) if size.isdecimal() else 0)
    async with api.store.read() as view:
        found = await view.images.seek(image.id)
        return nothing() if found is None else await respond(view, found)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise InvalidError("the upload broke off", remedy="Send it again.") from error


async def _console(api: Api, socket: WebSocket, name: str) -> None:
    try:
        if api.open_console is None:
            raise UnsupportedError("this controller relays no consoles")
        async with api.store.read() as view:
            vm: Vm = await view.vms.find(name)
        joined = await api.open_console(vm)
    except SeraiError as error:
        await socket.send_denial_response(refusal(error))
        return
    try:
        await socket.accept()
        sending = asyncio.ensure_future(_send(socket, joined))
        stopping = asyncio.ensure_future(api.stopping.wait())
        receiving = asyncio.ensure_future(_receive(socket, joined))
        tasks = {sending, receiving, stopping}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                reason = joined.ended if sending.done() else "the controller goes down"
                await socket.close(GOING_AWAY, reason.encode()[:REASON_MAX].decode(errors="ignore"))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        joined.close()


async def _send(socket: WebSocket, joined: Console) -> None:
    while data := await joined.read(CHUNK):
        await socket.send_bytes(data)


async def _receive(socket: WebSocket, joined: Console) -> None:
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            joined.write(data if data is not None else message["text"].encode())
            await joined.drain()
    except WebSocketDisconnect:
        return
