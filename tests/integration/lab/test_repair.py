"""`serai lab repair`: what was killed runs again, on the state that it left."""

from __future__ import annotations

import json
import os
import signal

from tests.support.labworld import LabWorld

from serai.lab.state import LabFolder

from .conftest import run


async def test_what_was_killed_is_started_again_and_nothing_else(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--hosts", "2", "--name", name)
    world.remember()
    assert "nothing" in (await run("lab", "repair", "--name", name)).text
    before = {record.role: record.pid for record in LabFolder.of(name).load().processes}
    killed = ("nats-server ctl", "controller ctl", "agent h1")
    for role in killed:
        os.kill(before[role], signal.SIGKILL)
    said = (await run("lab", "repair", "--name", name)).text
    assert all(f"{role}: started again" in said for role in killed)
    after = LabFolder.of(name).load().processes
    assert all(record.alive for record in after)
    assert {record.role for record in after if record.pid == before[record.role]} == {"agent h2"}
    assert "nothing" in (await run("lab", "repair", "--name", name)).text
    await run("lab", "down", "--name", name)


async def test_an_agent_that_ends_again_is_not_said_to_be_back(world: LabWorld) -> None:
    """Its host is still shown online then, for want of another word."""
    name = world.name()
    await run("lab", "up", "--hosts", "1", "--name", name)
    world.remember()
    folder = LabFolder.of(name)
    (agent,) = [record for record in folder.load().processes if record.role == "agent h1"]
    config = folder.path / "agent-h1.json"
    right = config.read_text()
    config.write_text(json.dumps({**json.loads(right), "pki": "/nowhere"}))
    os.kill(agent.pid, signal.SIGKILL)
    for _ in range(2):
        ended = await run("lab", "repair", "--name", name, check=False)
        said = ended.stderr.decode()
        assert ended.returncode == 1
        assert "agent h1 ended before the lab was up" in said
        assert "/nowhere" in said
        assert f"(its log: {folder.logs / 'agent-h1.log'})" in said
        assert "Traceback" not in said
    config.write_text(right)
    assert "agent h1: started again" in (await run("lab", "repair", "--name", name)).text
    await run("lab", "down", "--name", name)
