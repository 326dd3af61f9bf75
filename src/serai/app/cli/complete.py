"""Names for shell completion, asked of the API in a moment or not at all.

A completion must never complain: without a controller, a token or an answer in time there is nothing to offer.
"""

from __future__ import annotations

import asyncio
import glob
import importlib
from collections.abc import Callable

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


def _names_of(endpoint: str) -> Callable[[typer.Context, str], list[str]]:
    """Completes names of what the endpoint lists; ids, where they have none."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return _names(ctx, endpoint, incomplete)

    return complete


vms, hosts, pools = _names_of("vm.list"), _names_of("host.list"), _names_of("pool.list")
volumes, images, networks = _names_of("volume.list"), _names_of("image.list"), _names_of("network.list")
jobs = _names_of("job.list")


def contexts_known(incomplete: str) -> list[str]:
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


def _values_of(module: str, name: str) -> Callable[[str], list[str]]:
    """Completes the values of an enumeration, whose module is imported only then."""

    def complete(incomplete: str) -> list[str]:
        kind = getattr(importlib.import_module(module), name)
        return [one.value for one in kind if one.value.startswith(incomplete)]

    return complete


vm_states, job_states = _values_of("serai.schema.vm", "VmState"), _values_of("serai.schema.job", "JobState")
machines, restarts = _values_of("serai.schema.vm", "MachineKind"), _values_of("serai.schema.vm", "RestartPolicy")


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
