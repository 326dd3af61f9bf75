"""A store that cannot be written for a while: a disk that is really full, a lock that another connection really has."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pydantic import Field

from serai.app.controller import DATABASE, Controller, ControllerConfig, Extras, running
from serai.client.context import Context
from serai.client.http import Client
from serai.controller.hosts.uploads import Uploads
from serai.controller.jobs.workflow import JobContext, NoState, Services, Step, Workflow
from serai.controller.services.rights import Rights
from serai.controller.store import Store, StoreUnavailableError, database
from serai.lib.membus import MemBus
from serai.lib.process import run
from serai.schema.errors import UnavailableError
from serai.schema.job import Job, JobState, StepState
from serai.schema.resource import Frozen

Fault = Callable[[Path], AbstractContextManager[object]]


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Nothing more fits on the file system of `folder`."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process's transaction, as of a shell that was left open."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


class Seen(Frozen):
    seen: list[str] = Field(default_factory=list)


StepContext = JobContext[NoState, Seen]


class World:
    """A controller on a small file system of its own, with one workflow whose step waits in its middle."""

    workflow: Workflow[NoState, Seen]

    def __init__(self, state: Path) -> None:
        self.state = state
        self.config = ControllerConfig(
            state=state, listen=None, socket=state / "api.sock", token_file=state / "api.token"
        )
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.lines: list[str] = []
        self.repeatable = True

    async def extras(self, store: Store, rights: Rights) -> Extras:
        async def first(ctx: StepContext) -> None:
            self.lines.append("first")
            ctx.remember(seen=["first"])

        async def second(ctx: StepContext) -> None:
            self.lines.append(f"second after {ctx.state.seen}")
            ctx.remember(seen=[*ctx.state.seen, "second"])
            self.reached.set()
            await self.go_on.wait()
            async with ctx.store.transaction() as tx:
                await tx.emit("written", "by/second")

        def undo(name: str) -> Callable[[StepContext], Awaitable[None]]:
            async def back(ctx: StepContext) -> None:
                self.lines.append(f"-{name}")
                async with ctx.store.transaction() as tx:
                    await tx.emit("written", f"by/-{name}")

            return back

        steps = (
            Step("first", first, undo=undo("first"), repeatable=True),
            Step("second", second, undo=undo("second"), repeatable=self.repeatable),
        )
        self.workflow = Workflow("network.delete", NoState, Seen, steps)
        return Extras({self.workflow.kind: self.workflow}, Services(rights, Uploads(), b""))

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[Controller]:
        bus = MemBus()
        try:
            async with running(self.config, bus, self.extras) as controller:
                yield controller
        finally:
            await bus.close()

    def client(self) -> Client:
        return Client(Context(socket=self.config.socket, token_file=self.config.token_file))

    async def begin(self, controller: Controller) -> Job:
        """A job that is in its second step."""
        async with controller.store.transaction() as tx:
            job = await controller.engine.submit(
                tx, self.workflow, "network/n", "a" * 12, NoState(), requested_by="test"
            )
        await asyncio.wait_for(self.reached.wait(), 20)
        return job


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(database, "BUSY_MS", 50)
    place = tmp_path / "small"
    place.mkdir()
    await run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(place)])
    try:
        yield World(place)
    finally:
        await run(["umount", "--lazy", str(place)])


faults = pytest.mark.parametrize(
    ("fault", "why"), [(full, "the disk is full"), (locked, "another process has it locked")]
)


async def refused(store: Store) -> StoreUnavailableError:
    """The refusal of a transaction, once the store fails: the disk's last free bytes may still take one."""
    while True:
        try:
            async with store.transaction() as tx:
                await tx.emit("probe", "a/b", "", "x" * 5000)
        except StoreUnavailableError as error:
            return error


async def failing(controller: Controller, count: int) -> None:
    """Wait until that many attempts to write have failed."""
    health = controller.store.writes
    async with asyncio.timeout(20):
        while health.failures < count:
            await asyncio.sleep(0.01)


@faults
async def test_a_job_goes_on_once_the_store_works_again(
    world: World, fault: Fault, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.started() as controller, world.client() as client:
        job = await world.begin(controller)
        caplog.clear()
        with caplog.at_level(logging.INFO), fault(world.state):
            assert why in str(await refused(controller.store))
            world.go_on.set()
            await failing(controller, 5)
            assert (await client.call("job.show", job.id)).state is JobState.RUNNING
        with caplog.at_level(logging.INFO):
            ended = await asyncio.wait_for(client.wait_job(job.id), 20)
    assert (ended.state, ended.error) == (JobState.DONE, None)
    # As after a crash: the step is run again, with what was written before it began.
    assert world.lines[0] == "first"
    assert set(world.lines[1:]) == {"second after ['first']"}
    told = [record for record in caplog.records if "database" in record.getMessage()]
    assert [record.levelname for record in told] == ["ERROR", "INFO"], told
    assert not [record for record in caplog.records if record.exc_info]


@faults
async def test_a_step_that_cannot_be_repeated_is_undone(world: World, fault: Fault, why: str) -> None:
    world.repeatable = False
    async with world.started() as controller, world.client() as client:
        job = await world.begin(controller)
        with fault(world.state):
            await refused(controller.store)
            world.go_on.set()
            await failing(controller, 5)
        ended = await asyncio.wait_for(client.wait_job(job.id), 20)
    assert (ended.state, [step.state for step in ended.steps]) == (
        JobState.FAILED,
        [StepState.UNDONE, StepState.FAILED],
    )
    assert ended.error is not None
    assert (ended.error.code, ended.error.field) == ("unavailable", "database")
    assert world.lines[-2:] == ["-second", "-first"]


@faults
async def test_the_api_says_why_and_what_to_do(world: World, fault: Fault, why: str) -> None:
    async with world.started() as controller, world.client() as client:
        body = {"name": "lan", "spec": {"bridge": "br-lan", "subnet": "10.77.0.0/24"}}
        job = await world.begin(controller)
        with fault(world.state):
            await refused(controller.store)
            for call in (
                functools.partial(client.call, "network.create", None, body),
                functools.partial(client.call, "job.cancel", job.id),
                functools.partial(client.call, "job.cancel", job.id),
            ):
                with pytest.raises(UnavailableError, match=why) as caught:
                    await call()
                info = caught.value.info
                assert (info.code, info.field, info.value) == ("unavailable", "database", str(world.state / DATABASE))
                assert info.remedy
            assert (await client.call("network.list")).items == []
        # Asked again, it is promised, and kept.
        assert (await client.call("job.cancel", job.id)).state is JobState.CANCELLING
        world.go_on.set()
        assert (await client.call("network.create", None, body)).name == "lan"
        assert (await asyncio.wait_for(client.wait_job(job.id), 20)).state is not JobState.RUNNING


async def test_a_controller_goes_down_while_its_store_fails_and_finds_its_job_again(world: World) -> None:
    async with world.started() as controller:
        job = await world.begin(controller)
        with full(world.state):
            await refused(controller.store)
            world.go_on.set()
            await failing(controller, 5)
            await controller.engine.stop()
    async with world.started(), world.client() as client:
        assert (await asyncio.wait_for(client.wait_job(job.id), 20)).state is JobState.DONE


async def test_those_who_queue_behind_a_failure_do_not_each_wait_for_it(world: World) -> None:
    store = await Store.open(world.state / DATABASE)

    async def write() -> None:
        async with store.transaction() as tx:
            await tx.emit("a", "b")

    with locked(world.state):
        answers = await asyncio.gather(*(write() for _ in range(20)), return_exceptions=True)
        assert all(isinstance(answer, StoreUnavailableError) for answer in answers)
        assert store.writes.failures == 1
    await write()
    await store.close()


async def test_a_cancel_is_not_lost_to_a_commit_that_fails(world: World) -> None:
    """Else whoever closes a task, and waits for its end, may wait for ever."""
    async with world.started() as controller:
        with full(world.state):
            await refused(controller.store)

            async def write() -> None:
                async with controller.store.transaction() as tx:
                    await tx.emit("probe", "a/b", "", "x" * 5000)
                    asyncio.get_running_loop().call_soon(task.cancel)

            task = asyncio.create_task(write())
            await asyncio.wait({task})
            assert task.cancelled()
