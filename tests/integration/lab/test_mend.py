"""`serai lab mend`: what was killed runs again, on the state that it left."""

from __future__ import annotations

import os
import signal

from serai.lab.state import LabFolder

from .conftest import LabWorld, run


async def test_what_was_killed_is_started_again_and_nothing_else(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--hosts", "2", "--name", name)
    world.remember()
    assert "nothing" in (await run("lab", "mend", "--name", name)).text
    before = {record.role: record.pid for record in LabFolder.of(name).load().processes}
    killed = ("nats-server ctl", "controller ctl", "agent h1")
    for role in killed:
        os.kill(before[role], signal.SIGKILL)
    said = (await run("lab", "mend", "--name", name)).text
    assert all(f"{role}: started again" in said for role in killed)
    after = LabFolder.of(name).load().processes
    assert all(record.alive for record in after)
    assert {record.role for record in after if record.pid == before[record.role]} == {"agent h2"}
    assert "nothing" in (await run("lab", "mend", "--name", name)).text
    await run("lab", "down", "--name", name)
