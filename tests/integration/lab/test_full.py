"""A whole lab: bus, controller and agents as separate processes; and that all of it goes, whatever was killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

from tests.support.labworld import NOTHING, LabWorld

from serai.client import context as contexts
from serai.lab.state import LabFolder, Phase, ProcessRecord
from serai.lib import process
from serai.lib.namespace import processes_in

from .conftest import run, serai


def record(name: str, role: str) -> ProcessRecord:
    return next(found for found in LabFolder.of(name).load().processes if found.role == role)


async def keep_something_elsewhere(place: Path) -> None:
    """A pool with a volume in a folder that all the lab's hosts see, as the machine does: it is one host's."""
    await run("pool", "create", "elsewhere", "--host", "h1", "--path", str(place))
    await run("volume", "create", "v", "--pool", "elsewhere", "--size", "1M")
    refused = await run("pool", "create", "again", "--host", "h2", "--path", str(place), check=False)
    assert refused.returncode != 0
    assert str(place / ".serai-pool").encode() in refused.stderr
    assert len(list(place.glob("*.raw"))) == 1


async def test_a_newcomer_finds_hosts_a_pool_and_a_network_and_can_leave_without_a_trace(world: LabWorld) -> None:
    name = world.name()
    contexts.put("mine", contexts.Context(url="https://elsewhere.example"))
    up = await run("lab", "up", "--hosts", "2", "--name", name, "--link-rate", "1gbit")
    assert b"is up" in up.stdout
    world.remember()
    hosts = json.loads((await run("host", "list", "-o", "json")).text)
    assert {host["name"]: host["status"]["state"] for host in hosts} == {"h1": "online", "h2": "online"}
    assert hosts[0]["status"]["facts"]["addresses"] == {
        "management": "10.77.0.11", "migration": "10.78.0.11", "storage": "10.78.0.11"
    }  # fmt: skip
    (pool,) = json.loads((await run("pool", "list", "-o", "json")).text)
    assert (pool["name"], pool["spec"]["host"], pool["spec"]["export"]) == ("shared0", "h1", "iscsi")
    (network,) = json.loads((await run("network", "list", "-o", "json")).text)
    assert (network["name"], network["spec"]["bridge"], network["spec"]["subnet"]) == ("lan", "br-lan", "10.77.0.0/24")
    assert (network["spec"]["range_start"], network["spec"]["range_end"]) == ("10.77.0.100", "10.77.0.250")
    shown = json.loads((await run("lab", "status", "--name", name, "-o", "json")).text)
    assert {found["role"] for found in shown["processes"]} == {
        "nats-server ctl", "controller ctl", "agent h1", "agent h2"
    }  # fmt: skip
    assert all(found["alive"] for found in shown["processes"])
    assert contexts.load().current == name
    # What fetches packages does so in the machine's own network.
    fetcher = LabFolder.of(name).programs / "apt-get"
    outside = await run("lab", "exec", "--name", name, "h1", "--", str(fetcher), "--version")
    assert outside.text.startswith("apt ")
    await keep_something_elsewhere(world.parent / "srv")
    await run("lab", "down", "--name", name)
    # The context that was chosen before is chosen again.
    assert contexts.load().current == "mine"
    contexts.config_file().unlink()
    contexts.config_file().parent.rmdir()
    assert world.left() == NOTHING


async def test_down_after_kill_9_of_everything_in_turn(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--hosts", "2", "--name", name)
    world.remember()
    await run("image", "build", "tiny")
    for number in (1, 2):
        await run(
            "vm",
            "create",
            f"v{number}",
            "--image",
            "tiny",
            "--memory",
            "128M",
            "--disk",
            "shared0:16M",
            "--network",
            "lan",
        )
    vms = json.loads((await run("vm", "list", "-o", "json")).text)
    assert {vm["status"]["host"] for vm in vms} == {"h1", "h2"}
    for role in ("agent h1", "nats-server ctl", "controller ctl"):
        killed = record(name, role)
        os.kill(killed.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while killed.alive:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    assert b"gone" in (await run("lab", "status", "--name", name)).stdout
    # On h1 QEMU and tgtd go on without their agent; on h2 QEMU is killed as well, once nobody can clean up after it.
    os.kill(record(name, "agent h2").pid, signal.SIGKILL)
    (qemu,) = [pid for pid in processes_in(f"serai-{name}-h2") if b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(qemu, signal.SIGKILL)
    await run("lab", "down", "--name", name)
    assert world.left() == NOTHING
    assert not [path for vm in vms for path in Path("/sys/fs/cgroup").glob(f"**/{vm['id']}")]


async def test_up_killed_while_its_programs_start(world: LabWorld) -> None:
    name = world.name()
    child = await process.spawn(serai("lab", "up", "--hosts", "2", "--name", name))
    folder = LabFolder.of(name)
    deadline = time.monotonic() + 60
    while not (folder.path / "agent-h1.json").exists():
        assert time.monotonic() < deadline
        assert child.alive
        await asyncio.sleep(0.01)
    await child.kill()
    world.remember()
    found = folder.read()
    assert found is not None
    assert found.phase is Phase.STARTING
    assert world.left()["processes"]
    await run("lab", "down", "--name", name)
    assert world.left() == NOTHING


async def test_a_failure_at_the_very_end_undoes_all(world: LabWorld) -> None:
    name = world.name()
    file: Path = contexts.config_file()
    file.parent.mkdir()
    file.write_text("contexts: [")
    failed = await run("lab", "up", "--hosts", "1", "--name", name, check=False)
    assert failed.returncode == 1
    assert b"context" in failed.stderr
    file.unlink()
    file.parent.rmdir()
    assert world.left() == NOTHING
