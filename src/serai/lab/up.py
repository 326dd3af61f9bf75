"""Brings a lab up: folder, namespaces, wires; then, unless it is bare, certificates, bus, controller and agents.

Any failure, an interruption included, takes away all that was made. An earlier lab of the same name that was
interrupted, or lost its namespaces in a reboot, is cleaned up first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from serai.lab import fabric, services, state
from serai.lab.down import read_tolerantly, sweep
from serai.lab.state import OWN_PATHS, LabFolder, LabState, Phase
from serai.lab.topology import Plan, plan
from serai.lib import mount, namespace
from serai.lib.rollback import Rollback
from serai.schema.errors import ConflictError

log = logging.getLogger(__name__)

Say = Callable[[str], None]


async def up(
    name: str, hosts: int, *, link_rate: int | None = None, bare: bool = False, say: Say = log.info
) -> LabState:
    """Bring a lab up and return its state; `link_rate` in bit/s, `say` hears each step.

    Raises InvalidError, ConflictError if it stands already, and whatever failed.
    """
    wanted = plan(name, hosts, link_rate)
    folder = LabFolder.of(name)
    async with state.locked(folder):
        await _make_room(folder, wanted, say)
        async with Rollback() as undo:
            undo.push(f"lab {name}", lambda: sweep(folder))
            now = LabState(name=name, hosts=hosts, link_rate=link_rate, bare=bare)
            folder.write(now)
            say("namespaces and links")
            await fabric.build(wanted, folder.environment)
            await _furnish(folder, wanted)
            if not bare:
                now = await services.start(folder, now, say)
            now = now.model_copy(update={"phase": Phase.UP})
            folder.write(now)
            undo.keep()
    return now


async def _make_room(folder: LabFolder, wanted: Plan, say: Say) -> None:
    """Enter the lab into the register, and clean up after an interrupted one of this name.

    Raises ConflictError if one stands, here or in another parent folder.
    """
    found = read_tolerantly(folder)
    if (
        found is not None
        and found.phase is Phase.UP
        and any(namespace.exists(found.plan.netns(node)) for node in found.plan.nodes)
    ):
        raise ConflictError(
            "this lab stands already",
            field="name",
            value=folder.name,
            remedy=f"Use it, take it down (serai lab down --name {folder.name}), or choose another --name.",
        )
    try:
        state.register(folder)
    except ConflictError:
        # Only what our own lock made: the name is another's.
        with contextlib.suppress(OSError):
            folder.path.rmdir()
        raise
    if any(folder.path.iterdir()) or any(namespace.exists(wanted.netns(node)) for node in wanted.nodes):
        say("cleaning up after an interrupted lab")
        await sweep(folder, keep=True)
        state.register(folder)


async def _furnish(folder: LabFolder, wanted: Plan) -> None:
    """Give each host a mount namespace in which the machine's places for Serai are the host's own."""
    for path in (folder.pins, folder.logs, folder.probes):
        path.mkdir(mode=0o700)
    mount.bind(folder.pins, folder.pins)
    mount.make_private(folder.pins)
    folder.outside.touch(mode=0o600)
    mount.bind(Path("/proc/self/ns/net"), folder.outside)
    async with asyncio.TaskGroup() as group:
        for host in wanted.hosts:
            binds = []
            for own, place in OWN_PATHS.items():
                path = folder.host(host) / own
                path.mkdir(mode=0o755, parents=True)
                binds.append((path, place))
            group.create_task(mount.make_namespace(folder.pin(host), binds, env=folder.environment))
