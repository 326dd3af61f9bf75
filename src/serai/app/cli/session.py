"""One command's connection to the API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from serai.client.context import Context
    from serai.client.http import Client

T = TypeVar("T")


def chosen(ctx: typer.Context) -> tuple[str, Context]:
    """The context that `serai --context NAME` or the context file chose. Raises NotFoundError, UnavailableError."""
    from serai.client import context as contexts

    return contexts.resolve(ctx.find_root().params.get("context"))


def run(ctx: typer.Context, body: Callable[[Client], Awaitable[T]]) -> T:
    """Connect, run `body` with the client, disconnect. Raises SeraiError."""
    from serai.client.http import Client

    _, context = chosen(ctx)

    async def connected() -> T:
        async with Client(context) as client:
            return await body(client)

    return asyncio.run(connected())
