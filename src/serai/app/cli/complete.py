"""Names for shell completion, asked of the API in a moment or not at all.

A completion must never complain: without a controller, a token or an answer in time there is nothing to offer.
"""

from __future__ import annotations

import asyncio
import glob

import typer

from serai.lib.timeouts import time_limit

PATIENCE = 1.0
"""Seconds; a user who pressed Tab will not wait longer."""
MOST = 200


def _names(ctx: typer.Context, endpoint: str, incomplete: str) -> list[str]:
    from serai.client import context as contexts
    from serai.client.http import Client
    from serai.schema.errors import SeraiError

    async def ask() -> list[str]:
        _, context = contexts.resolve(ctx.find_root().params.get("context"))
        async with Client(context, timeout=PATIENCE) as client, time_limit(PATIENCE):
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


def pools_sized(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of pools, ready for a size."""
    return [f"{name}:" for name in _names(ctx, "pool.list", incomplete)]


def ssh_targets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of VMs, after the user if one is given."""
    user, at, begun = incomplete.rpartition("@")
    return [f"{user}{at}{name}" for name in _names(ctx, "vm.list", begun)]


def vm_states(incomplete: str) -> list[str]:
    """States of VMs."""
    from serai.schema.vm import VmState

    return [state.value for state in VmState if state.value.startswith(incomplete)]


def job_states(incomplete: str) -> list[str]:
    """States of jobs."""
    from serai.schema.job import JobState

    return [state.value for state in JobState if state.value.startswith(incomplete)]


def machines(incomplete: str) -> list[str]:
    """Kinds of machines."""
    from serai.schema.vm import MachineKind

    return [kind.value for kind in MachineKind if kind.value.startswith(incomplete)]


def restarts(incomplete: str) -> list[str]:
    """Restart policies."""
    from serai.schema.vm import RestartPolicy

    return [policy.value for policy in RestartPolicy if policy.value.startswith(incomplete)]


def labs(incomplete: str) -> list[str]:
    """Names of this machine's labs."""
    from serai.lab.state import parent_folder

    try:
        return sorted(file.parent.name for file in parent_folder().glob(f"{glob.escape(incomplete)}*/lab.json"))
    except OSError:
        return []


def lab_nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Nodes of the lab that `--name` says."""
    from serai.lab.state import LabFolder
    from serai.schema.errors import SeraiError

    try:
        state = LabFolder.of(ctx.params.get("name") or "lab").read()
    except (SeraiError, OSError):
        return []
    return [] if state is None else [node for node in state.plan.nodes if node.startswith(incomplete)]
