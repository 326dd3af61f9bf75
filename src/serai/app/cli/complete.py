"""Names for shell completion, asked of the API in a moment or not at all.

A completion must never complain: without a controller, a token or an answer in time there is nothing to offer.
"""

from __future__ import annotations

import asyncio

import typer

PATIENCE = 1.0
"""Seconds; whoever pressed Tab will not wait longer."""
MOST = 200


def _names(ctx: typer.Context, endpoint: str, incomplete: str) -> list[str]:
    from serai.client import context as contexts
    from serai.client.http import Client
    from serai.schema.errors import SeraiError

    async def ask() -> list[str]:
        _, context = contexts.resolve(ctx.find_root().params.get("context"))
        async with Client(context, timeout=PATIENCE) as client, asyncio.timeout(PATIENCE):
            items = [item async for item in client.items(endpoint, limit=MOST)]
        return [getattr(item, "name", None) or item.id for item in items]

    try:
        return [name for name in asyncio.run(ask()) if name.startswith(incomplete)]
    except (SeraiError, OSError, TimeoutError):
        return []


def vms(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of VMs."""
    return _names(ctx, "vm.list", incomplete)


def hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of hosts."""
    return _names(ctx, "host.list", incomplete)


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of pools."""
    return _names(ctx, "pool.list", incomplete)


def volumes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of volumes."""
    return _names(ctx, "volume.list", incomplete)


def images(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of images."""
    return _names(ctx, "image.list", incomplete)


def networks(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of networks."""
    return _names(ctx, "network.list", incomplete)


def jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of jobs."""
    return _names(ctx, "job.list", incomplete)


def contexts_known(incomplete: str) -> list[str]:
    """Names of contexts."""
    from serai.client import context as contexts
    from serai.schema.errors import SeraiError

    try:
        return [name for name in contexts.load().contexts if name.startswith(incomplete)]
    except (SeraiError, OSError):
        return []
