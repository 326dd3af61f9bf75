"""`serai lab down` leaves nothing behind, whatever was killed before, and when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.labworld import NOTHING, LabWorld

from serai.lab import state
from serai.lab.down import down
from serai.lab.state import LabFolder
from serai.lab.up import up
from serai.lib import mount, namespace, process

from .conftest import run, serai, start_inside

DEADLINE = 60.0
STUBBORN = "trap '' TERM; mkdir -p /run/serai/vms; touch /run/serai/vms/here; while :; do sleep 1000; done"


async def wait_for(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        await asyncio.sleep(0.01)


async def test_down_takes_all_and_again_is_fine(world: LabWorld) -> None:
    name = world.name()
    await up(name, 3, bare=True)
    world.remember()
    assert len(world.left()["namespaces"]) == 6
    assert await down(name)
    assert world.left() == NOTHING
    assert not await down(name)


async def test_processes_end_also_those_that_refuse_and_those_with_another_parent(world: LabWorld) -> None:
    name = world.name()
    await up(name, 2, bare=True)
    world.remember()
    ours = await start_inside(name, "h1", ["sh", "-c", STUBBORN])
    # A grandchild whose parent is gone, in a session and a mount namespace of its own.
    orphan = "setsid unshare --mount sh -c 'touch /run/serai/orphan; exec sleep 1000' >/dev/null 2>&1 </dev/null &"
    await run("lab", "exec", "--name", name, "h2", "--", "sh", "-c", orphan)
    folder = LabFolder.of(name)
    await wait_for(folder.host("h1") / "run" / "vms" / "here")
    await wait_for(folder.host("h2") / "run" / "orphan")
    assert len(world.left()["processes"]) >= 2
    await down(name)
    assert world.left() == NOTHING
    assert not ours.alive


async def test_a_caller_that_was_cancelled_takes_all_too(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    world.remember()
    await start_inside(name, "h1", ["sh", "-c", STUBBORN])
    await wait_for(LabFolder.of(name).host("h1") / "run" / "vms" / "here")

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await down(name)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert world.left() == NOTHING


async def test_a_program_that_left_the_labs_namespaces_ends_too(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    folder = LabFolder.of(name)
    world.remember()
    # As a fetcher of an agent's that makes namespaces of its own.
    away = ["nsenter", f"--net={folder.outside}", "--", "unshare", "--mount", "sleep", "1000"]
    line = [*namespace.enter_argv(f"serai-{name}-h1", folder.pin("h1")), *away]
    child = await process.spawn(line, env=folder.environment)
    while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n":
        await asyncio.sleep(0.01)
    await down(name)
    assert not child.alive


async def test_mounts_and_loop_devices_made_inside_a_host_go(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    world.remember()
    script = """set -e
        truncate -s 16M /var/lib/serai/disk
        mkdir /var/lib/serai/there
        mkfs.ext4 -q /var/lib/serai/disk
        mount -o loop /var/lib/serai/disk /var/lib/serai/there
        losetup --find /var/lib/serai/disk"""
    await run("lab", "exec", "--name", name, "h1", "--", "sh", "-c", script)
    loops = mount.loops_on(LabFolder.of(name).path)
    assert len(loops) == 2  # both on one file
    await down(name)
    assert world.left() == NOTHING
    # Others may have got the devices meanwhile.
    for loop in loops:
        with contextlib.suppress(FileNotFoundError):
            assert name not in Path(f"/sys/block/{loop.name}/loop/backing_file").read_text()


async def test_recorded_processes_elsewhere_end_but_no_stranger_of_that_number(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    world.remember()
    folder = LabFolder.of(name)
    mine, stranger = [await process.spawn(["sleep", "1000"]) for _ in range(2)]
    starts = [process.start_time(child.pid) or 0 for child in (mine, stranger)]
    records = [
        state.ProcessRecord(role="mine", pid=mine.pid, start=starts[0]),
        state.ProcessRecord(role="another, long gone", pid=stranger.pid, start=starts[1] - 1),
    ]
    folder.write(folder.load().model_copy(update={"processes": records}))
    try:
        await down(name)
        assert not mine.alive
        assert stranger.alive
    finally:
        await stranger.kill()


async def kill_up_at(name: str, moment: int) -> None:
    """Start `lab up` and kill -9 it when so many of its namespaces are there (99: when it is nearly done)."""
    child = await process.spawn(serai("lab", "up", "--bare", "--hosts", "3", "--name", name))
    deadline = time.monotonic() + DEADLINE
    folder = LabFolder.of(name)
    while child.alive:
        assert time.monotonic() < deadline
        if moment == 99 and (folder.pins / "h1").exists():
            break
        if folder.path.is_dir() and len(namespace.names(f"serai-{name}-")) >= moment:
            break
    await child.kill()


@pytest.mark.parametrize("moment", [0, 1, 3, 6, 99])
@pytest.mark.parametrize("then", ["down", "down at once", "up"])
async def test_up_killed_in_the_middle_is_cleaned_up(world: LabWorld, moment: int, then: str) -> None:
    name = world.name()
    await kill_up_at(name, moment)
    world.remember()
    if then == "up":
        await run("lab", "up", "--bare", "--hosts", "1", "--name", name)
        world.remember()
        await run("lab", "exec", "--name", name, "probe", "--", "ping", "-c", "1", "-W", "5", "10.77.0.11")
        assert len(world.left()["namespaces"]) == 4
    if then == "down at once":
        # Within a millisecond: the programs that it was waiting for still make namespaces.
        await down(name)
    else:
        await run("lab", "down", "--name", name)
    assert world.left() == NOTHING


async def test_down_killed_in_the_middle_is_finished_by_the_next(world: LabWorld) -> None:
    name = world.name()
    await up(name, 3, bare=True)
    world.remember()
    child = await process.spawn(serai("lab", "down", "--name", name))
    while child.alive and len(namespace.names(f"serai-{name}-")) == 6:
        await asyncio.sleep(0)
    await child.kill()
    await down(name)
    assert world.left() == NOTHING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_interrupting_up_undoes_it(world: LabWorld, number: signal.Signals) -> None:
    name = world.name()
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:  # as under nohup: a child would inherit it
        signal.signal(number, signal.SIG_DFL)
    try:
        child = await process.spawn(serai("lab", "up", "--bare", "--hosts", "8", "--name", name))
    finally:
        signal.signal(number, before)
    deadline = time.monotonic() + DEADLINE
    while not namespace.names(f"serai-{name}-"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
    child.send_signal(number)
    assert await child.wait() == 128 + number
    assert world.left() == NOTHING


async def test_an_error_in_up_undoes_it(world: LabWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    name = world.name()
    # A name that a namespace of the lab should get is taken by something else than a namespace.
    taken = namespace.netns_path(f"serai-{name}-h2")
    real = namespace.create

    async def create(space: str, *, env: Mapping[str, str] | None = None) -> None:
        if space == taken.name:
            raise OSError(28, "No space left on device")
        await real(space, env=env)

    monkeypatch.setattr(namespace, "create", create)
    with pytest.raises(ExceptionGroup):
        await up(name, 2, bare=True)
    assert world.left() == NOTHING


async def test_a_lab_without_its_folder_goes_too(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    world.remember()
    folder = LabFolder.of(name)
    mount.unmount_below(folder.path)
    await process.run(["rm", "-rf", str(folder.path)])
    await down(name)
    assert world.left() == NOTHING


async def test_a_machine_that_was_started_anew_has_no_lab(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    world.remember()
    for space in namespace.names(f"serai-{name}-"):
        await namespace.delete(space)
    await up(name, 2, bare=True)
    world.remember()
    await down(name)
    assert world.left() == NOTHING


async def test_who_takes_the_lab_down_from_inside_sees_it_gone(world: LabWorld) -> None:
    name = world.name()
    await up(name, 1, bare=True)
    argv = serai("lab", "down", "--name", name)
    assert os.environ[state.ENV_PARENT]
    inside = ["nsenter", f"--net=/run/netns/serai-{name}-ctl", "--", *argv]
    gone = await process.run(inside)
    assert b"is gone" in gone.stdout
    assert world.left() == NOTHING
