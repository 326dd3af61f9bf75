"""A VM's serial console over a WebSocket: bytes both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from serai.client.answers import raise_for
from serai.client.http import Client


@asynccontextmanager
async def console(client: Client, vm: str) -> AsyncIterator[ClientConnection]:
    """Join the serial console of a VM, by name or id; messages are bytes as the guest writes and reads them.

    Raises SeraiError as any call does (no such VM, not running, no controller).
    """
    path = f"/v1/vms/{quote(vm, safe='')}/console"
    context = client.context
    try:
        if context.socket is not None:
            joined = await unix_connect(
                str(context.socket), f"ws://serai{path}", additional_headers=client.headers, max_size=None
            )
        else:
            base = (context.url or "").rstrip("/").replace("http", "ws", 1)
            joined = await connect(base + path, additional_headers=client.headers, ssl=client.tls, max_size=None)
    except InvalidStatus as error:
        raise_for(error.response.status_code, bytes(error.response.body or b""))
        raise client.unreachable(error) from error
    except (OSError, InvalidHandshake) as error:
        raise client.unreachable(error) from error
    async with joined as connection:
        yield connection
