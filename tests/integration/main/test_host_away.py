"""A host whose agent is dead: what is on it is deleted by force, and cleared up when it is back; or it is forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lab.state import LabFolder
from serai.lib.ids import new_id
from serai.schema.host import HostState

from .cli import Serai, refused


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.1)


async def dead(lab: Lab, host: str) -> None:
    """Kill its agent, and wait until the controller has noticed."""

    async def offline() -> bool:
        return (await lab.client.call("host.show", host)).status.state is HostState.OFFLINE

    await lab.kill(f"agent {host}")
    await until(offline)


async def test_a_host_that_is_away_clears_up_when_it_is_back(lab: Lab, serai: Serai) -> None:
    pool = f"p{new_id()[:6]}"
    await serai.well("pool", "create", pool, "--host", "h3", "--export", "none")
    await serai.well("volume", "create", f"{pool}-v", "--pool", pool, "--size", "1M")
    path = (await serai.well("pool", "show", pool, "-o", "json")).json["status"]["path"]
    folder = LabFolder.of(lab.name).host("h3") / "state" / path.removeprefix("/var/lib/serai/")
    refused(await serai("host", "delete", "h3"), "host", "h3", "Stop its agent first")
    await dead(lab, "h3")
    try:
        refused(await serai("volume", "delete", f"{pool}-v"), "host", "h3", f"serai volume delete {pool}-v --force")
        await serai.well("volume", "delete", f"{pool}-v", "--force")
        ran = await serai("host", "delete", "h3")
        refused(ran, "host", "h3", "serai pool delete --force")
        assert f"pools {pool}" in ran.err
        ran = await serai.well("pool", "delete", pool, "--force")
        assert "h3 removes it when it is back" in ran.err
        refused(await serai("pool", "show", pool), "pool", pool, "serai pool list")
        assert folder.is_dir()
    finally:
        await lab.restart("agent h3")
    await lab.online("h3")

    async def cleared() -> bool:
        return not folder.exists()

    await until(cleared)
    await dead(lab, "h3")
    try:
        assert (await serai.well("host", "delete", "h3")).out == "host h3 deleted\n"
        refused(await serai("host", "show", "h3"), "host", "h3", "serai host list")
    finally:
        await lab.restart("agent h3")
    await lab.online("h3")
