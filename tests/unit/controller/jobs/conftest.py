"""An engine on a real store, workflows that a test makes up, and a log of what ran."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from serai.controller.hosts.uploads import Uploads
from serai.controller.jobs import runner
from serai.controller.jobs.engine import Engine
from serai.controller.jobs.workflow import JobContext, Services, Step, Workflow
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.schema.job import Job, StepState
from serai.schema.resource import Frozen

TARGET = "aaaaaaaaaaaa"


class Asked(Frozen):
    vm: str = TARGET


class Notes(Frozen):
    seen: list[str] = Field(default_factory=list)
    before: int = 0
    anything: Any = None


Context = JobContext[Asked, Notes]


class NoHosts:
    """No command is sent in these tests."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a command was sent")


class Log:
    """What ran, in order; steps made by `step` write to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def step(self, name: str, *, fail: Exception | None = None, hold: bool = False, **marks: Any) -> Step[Asked, Notes]:
        async def run(ctx: Context) -> None:
            self.lines.append(name)
            ctx.remember(seen=[*ctx.state.seen, name])
            if hold:
                self.reached.set()
                await self.go_on.wait()
                ctx.check_cancel()
            if fail is not None:
                raise fail

        async def undo(ctx: Context) -> None:
            self.lines.append(f"-{name}")

        return Step(name, run, undo=undo, **marks)


class Kit:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.workflows: dict[str, Workflow[Any, Any]] = {}
        self.services = Services(Rights(), Uploads(), b"secret")
        self.engine = Engine(store, NoHosts(), self.workflows, self.services)

    def define(self, kind: str, *steps: Step[Asked, Notes], **marks: Any) -> None:
        self.workflows[kind] = Workflow(kind, Asked, Notes, steps, **marks)

    async def submit(self, kind: str, target_id: str = TARGET, state: Notes | None = None) -> Job:
        workflow, params = self.workflows[kind], Asked(vm=target_id)
        async with self.store.transaction() as tx:
            return await self.engine.submit(tx, workflow, "vm/web1", target_id, params, state, requested_by="test")

    async def ended(self, job: Job) -> Job:
        return await self.seen(job, lambda now: now.state.ended)

    async def seen(self, job: Job, condition: Callable[[Job], bool]) -> Job:
        async with asyncio.timeout(10):
            while True:
                newest = self.store.bell.newest
                async with self.store.read() as view:
                    now = await view.jobs.get(job.id)
                if condition(now):
                    return now
                await self.store.bell.beyond(newest)

    async def restarted(self) -> None:
        """As if the controller had been killed and started again, with the workflows that there are now."""
        await self.engine.stop()
        self.engine = Engine(self.store, NoHosts(), {**self.workflows}, self.services)
        await self.engine.start()


def states(job: Job) -> list[StepState]:
    return [step.state for step in job.steps]


@pytest.fixture
async def kit(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    monkeypatch.setattr(runner, "RETRY_FIRST", 0.001)
    shutil.copyfile(empty_database, tmp_path / "serai.db")
    store = await Store.open(tmp_path / "serai.db")
    made = Kit(store)
    await made.engine.start()
    yield made
    await made.engine.stop()
    await store.close()


@pytest.fixture
def log() -> Log:
    return Log()
