"""Bearer tokens: who asks, on every route but health and the API's own description, on TCP and Unix socket alike.

Why the Unix socket asks for a token too: docs/adr/0003-token-on-every-socket.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from serai.controller.api.call import refusal
from serai.controller.store import Store
from serai.controller.store.secrets import digest
from serai.lib.ids import new_secret
from serai.schema.errors import InvalidError, UnauthorizedError

OPEN = frozenset({"/v1/health", "/v1/openapi.json"})
ADMIN = "admin"
PRINCIPAL = "serai.principal"
"""Where in the request's scope the caller's name is."""


class Auth:
    """Knows the tokens by their digests."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = dict(tokens)

    def check(self, header: str | None) -> str:
        """The name behind an Authorization header. Raises UnauthorizedError."""
        scheme, _, token = (header or "").partition(" ")
        name = self._tokens.get(digest(token.strip())) if scheme.lower() == "bearer" else None
        if name is None:
            raise UnauthorizedError(
                "no valid token came with the request",
                field="Authorization",
                remedy="Send `Authorization: Bearer TOKEN`; a CLI context names the file that holds it.",
            )
        return name


async def prepare(store: Store, token_file: Path) -> Auth:
    """Let in the token of the file; the file is made with mode 0600 and a new token, if it is not there.

    Raises InvalidError if others may read the file.
    """
    if not token_file.exists():
        token_file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        descriptor = os.open(token_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(new_secret() + "\n")
            file.flush()
            os.fsync(file.fileno())
    if token_file.stat().st_mode & 0o077:
        raise InvalidError(
            "the token file may be read by others", field="token_file", value=token_file, remedy="chmod 600 it."
        )
    token = token_file.read_text().strip()
    if len(token) < 32:
        raise InvalidError(
            "the token file holds no token",
            field="token_file",
            value=token_file,
            remedy="Delete it: a new one is made at the next start.",
        )
    async with store.transaction() as tx:
        await tx.tokens.add(ADMIN, token, tx.now)
        return Auth(await tx.tokens.all())


class Guard:
    """ASGI middleware: nothing under /v1 is looked at, not even its body, before the token is known."""

    def __init__(self, app: ASGIApp, auth: Auth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or answer 401."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            try:
                scope[PRINCIPAL] = self._auth.check(Headers(scope=scope).get("authorization"))
            except UnauthorizedError as error:
                if scope["type"] == "websocket":
                    await WebSocket(scope, receive, send).send_denial_response(refusal(error))
                else:
                    await refusal(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
