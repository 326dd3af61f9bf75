"""Network namespaces by name."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import observed

from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.process import run, spawn
from serai.schema.errors import HostError, NotFoundError


def own() -> str:
    """The network namespace of the calling thread."""
    return os.readlink("/proc/thread-self/ns/net")


@pytest.fixture
async def space() -> AsyncIterator[str]:
    name = f"serai-test-{new_id()[:6]}"
    await namespace.create(name)
    try:
        yield name
    finally:
        await namespace.delete(name)


async def test_one_is_there_until_it_is_deleted(space: str) -> None:
    assert namespace.exists(space)
    assert namespace.names(space) == [space]
    assert space in (await run(["ip", "netns", "list"])).stdout.decode()
    for _ in range(2):
        await namespace.delete(space)
        assert not namespace.exists(space)
    assert namespace.names(space) == []
    with pytest.raises(NotFoundError):
        await namespace.in_netns(space, own)


async def test_it_has_its_loopback_and_bridges_free_of_iptables(space: str) -> None:
    (loopback,) = (await namespace.in_netns(space, observed.links)).values()
    assert (loopback.name, loopback.up) == ("lo", True)
    assert await namespace.in_netns(space, namespace.filtered_bridges) == []


async def test_a_function_runs_inside_and_nobody_else_does(space: str) -> None:
    outside = own()
    inside = await namespace.in_netns(space, own)
    assert inside != outside
    assert own() == outside
    # No thread that others may use was left inside.
    assert {await asyncio.to_thread(own) for _ in range(10)} == {outside}
    assert await asyncio.gather(*(namespace.in_netns(space, own) for _ in range(5))) == [inside] * 5


async def test_what_a_function_raises_arrives(space: str) -> None:
    def fail() -> None:
        raise LookupError(own())

    with pytest.raises(LookupError, match="net:"):
        await namespace.in_netns(space, fail)


async def test_a_program_is_put_inside_and_found_there(space: str) -> None:
    inside = await namespace.in_netns(space, own)
    shown = await run([*namespace.enter_argv(space), "readlink", "/proc/self/ns/net"])
    assert shown.stdout.decode().strip() == inside
    assert namespace.enter_argv(None) == []
    assert namespace.processes_in(space) == []
    child = await spawn([*namespace.enter_argv(space), "sleep", "60"])
    try:
        deadline = time.monotonic() + 10
        while namespace.processes_in(space) != [child.pid]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
    finally:
        await child.kill()


async def test_what_is_no_namespace_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(HostError, match="cannot enter the network namespace"):
        await asyncio.to_thread(namespace.enter, file)
