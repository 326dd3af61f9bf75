"""`serai host network take` on a host of the lab that got one more link: kept once confirmed, else undone by itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lab.state import LabFolder
from serai.lib import namespace, netlink
from serai.lib.process import run

from .cli import Serai, misused, refused

HOST = "h3"
HERE, PEER = "10.99.0.1/24", "10.99.0.2/24"
BRIDGE = "br-up0"


@dataclass
class Uplink:
    """A link `up0` of the host, whose other end is in the probe's namespace."""

    netns: str
    probe: str

    async def link(self, name: str) -> dict[str, Any] | None:
        """What `ip` shows of one of the host's links; none if it is not there."""
        done = await run(["ip", "-n", self.netns, "-json", "address", "show", "dev", name], check=False)
        return dict(json.loads(done.stdout)[0]) if done.returncode == 0 else None

    async def addresses(self, name: str) -> list[str]:
        found = await self.link(name) or {"addr_info": []}
        return [f"{row['local']}/{row['prefixlen']}" for row in found["addr_info"] if row["family"] == "inet"]

    async def answers(self) -> bool:
        """Whether the other end reaches the host's address."""
        argv = [*namespace.enter_argv(self.probe), "ping", "-c", "1", "-W", "2", HERE.partition("/")[0]]
        return (await run(argv, check=False)).returncode == 0


@pytest.fixture
async def uplink(lab: Lab) -> AsyncIterator[Uplink]:
    folder = LabFolder.of(lab.name)
    plan = folder.load().plan
    here, probe = plan.netns(HOST), plan.netns("probe")
    await namespace.in_netns(here, lambda: netlink.add_veth("up0", "up0", peer_netns=probe))
    try:
        for name, address in ((here, HERE), (probe, PEER)):

            def furnish(address: str = address) -> None:
                netlink.set_link_sync("up0", up=True)
                netlink.add_address("up0", address)

            await namespace.in_netns(name, furnish)
        yield Uplink(here, probe)
    finally:
        for link in (BRIDGE, "up0"):
            await run(["ip", "-n", here, "link", "delete", "dev", link], check=False)
        for file in (folder.host(HOST) / "state" / "uplinks").glob("up0.*"):
            file.unlink()


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


def take(serai: Serai, *more: str) -> Any:
    return serai("host", "network", "take", "up0", "--host", HOST, "--bridge", BRIDGE, *more)


async def test_a_confirmed_bridge_stays(serai: Serai, uplink: Uplink) -> None:
    assert await uplink.answers()
    ran = await take(serai, "--confirm-within", "30s")
    assert ran.code == 0, ran.err
    assert f"serai host network confirm --host {HOST}" in ran.out
    assert await uplink.addresses(BRIDGE) == [HERE]
    assert await uplink.addresses("up0") == []
    assert (await uplink.link("up0") or {})["master"] == BRIDGE
    assert await uplink.answers()
    # One at a time: a second would hide what the first did.
    ran = await serai("host", "network", "take", "eth1", "--host", HOST, "--bridge", "br-other")
    refused(ran, "uplink", "eth1", "Confirm it, or wait until it is undone.")

    ran = await serai("host", "network", "confirm", "--host", HOST)
    assert (ran.code, ran.out) == (0, f"host {HOST} keeps its bridge\n"), ran.err
    await no_watchdog_is_left(uplink)
    assert await uplink.addresses(BRIDGE) == [HERE]
    assert await uplink.answers()
    refused(await take(serai), "uplink", "up0", "serai network create")


async def no_watchdog_is_left(uplink: Uplink) -> None:
    """Wait until no watchdog runs: from then on nothing will undo anything."""
    deadline = time.monotonic() + PATIENCE
    while any("serai.drivers.network.uplink" in words for words in map(cmdline, namespace.processes_in(uplink.netns))):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def cmdline(pid: int) -> list[str]:
    """A process's arguments; none if it is over."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


async def gone(uplink: Uplink) -> None:
    """Wait until the bridge is."""
    deadline = time.monotonic() + PATIENCE
    while await uplink.link(BRIDGE) is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_an_unconfirmed_bridge_goes_by_itself(serai: Serai, uplink: Uplink) -> None:
    ran = await take(serai, "--confirm-within", "2s", "-o", "json")
    assert ran.code == 0, ran.err
    assert ran.json["result"]["bridge"] == BRIDGE
    await gone(uplink)
    assert await uplink.addresses("up0") == [HERE]
    assert "master" not in (await uplink.link("up0") or {})
    assert await uplink.answers()
    refused(await serai("host", "network", "confirm", "--host", HOST), "uplink", "up0", "Take it again")


async def test_it_goes_without_an_agent_too(lab: Lab, serai: Serai, uplink: Uplink) -> None:
    """The change itself may have cut off, or killed, whoever was to undo it."""
    ran = await take(serai, "--confirm-within", "5s")
    assert ran.code == 0, ran.err
    await lab.kill(f"agent {HOST}")
    try:
        await gone(uplink)
        assert await uplink.addresses("up0") == [HERE]
        assert await uplink.answers()
    finally:
        await lab.restart(f"agent {HOST}")
    refused(await serai("host", "network", "confirm", "--host", HOST), "uplink", "up0", "Take it again")
    # Nothing of the first is in a second one's way.
    ran = await take(serai, "--confirm-within", "2s")
    assert ran.code == 0, ran.err
    await gone(uplink)


async def test_what_cannot_be_taken(serai: Serai, uplink: Uplink) -> None:
    words = ("host", "network", "take")
    ran = await serai(*words, "wan9", "--host", HOST, "--bridge", BRIDGE)
    refused(ran, "uplink", "wan9", "See 'ip link'")
    ran = await serai(*words, "eth0", "--host", HOST, "--bridge", BRIDGE)
    refused(ran, "uplink", "eth0", "br-lan")
    ran = await serai(*words, "br-lan", "--host", HOST, "--bridge", BRIDGE)
    refused(ran, "uplink", "br-lan", "Use it as it is")
    ran = await serai(*words, "up0", "--host", HOST)
    refused(ran, "bridge", "br-lan", "Choose another.")
    ran = await serai(*words, "lo", "--host", HOST, "--bridge", BRIDGE)
    refused(ran, "uplink", "lo", "Choose one like")
    assert await uplink.addresses("up0") == [HERE]
    refused(await serai(*words, "up0", "--host", "h9"), "host", "h9", "serai host list")
    refused(await serai("host", "network", "confirm", "--host", "h1"), "host", "h1", "serai host network take")
    ran = await serai(*words, "up0", "--host", HOST, "--confirm-within", "0.5s")
    refused(ran, "confirm_within", "0.5", "Use at least 1")
    misused(await serai(*words, "up0", "--host", HOST, "--confirm-within", "soon"), "soon")
    ran = await serai(*words, "up0")
    assert (ran.code, "a host must be named (--host). Name one of h1, h2, h3." in ran.err) == (1, True), ran.err
