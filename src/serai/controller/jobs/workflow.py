"""What a workflow is, and what its steps get to work with. `engine.py` and `runner.py` run it.

A workflow is a list of named steps, recorded before and after each runs. Its `Params` are what the job was asked for:
everyone who may list jobs sees them. Its `State` is what the job remembers between its steps, and is shown to nobody.
Both are frozen models. The rules that a step is written to:

- `run` may be called again after a controller crash only if the step is `repeatable`. Commands sent through
  `JobContext.send` carry ids derived from job, step and attempt, so a repeated step sends the same commands again
  and gets the same answers. A step that is not repeatable and was found running is asked by `resume`: True means
  "it is done after all, go on", False "undo". Without `resume` it is undone.
- `undo` runs, in reverse order, for every step that was done, and for the one that failed or was interrupted: it must
  tolerate that nothing, or half, was done. A failing undo is tried again until it succeeds, and `waits_for` says why.
- After a step with `point_of_no_return` nothing is undone: cancelling is too late, and a later step that fails is tried
  again until it succeeds. Those later steps must be repeatable.
- A step made by `written` is what the transaction that submitted the job has written. It is done from the beginning: it
  never runs, and its undo takes that back if the job does not end well, also if no other step ever began.
- A cancel takes effect before the next step that is `cancellable`, and inside one wherever it calls `check_cancel`
  or waits for a host that does not answer. A step that can stop what it started watches `cancelled` itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serai.controller.commands import CommandSender, OnProgress, SendOptions, Target, ignore
from serai.controller.hosts.uploads import Uploads
from serai.controller.jobs.writer import StateT, Writer
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.schema.commands.base import BodyT, Command, ReplyT
from serai.schema.errors import CancelledByUserError
from serai.schema.ids import VmId
from serai.schema.job import Job
from serai.schema.resource import Frozen

ParamsT = TypeVar("ParamsT", bound=Frozen)
ParamsT_co = TypeVar("ParamsT_co", bound=Frozen, covariant=True)
ParamsT_contra = TypeVar("ParamsT_contra", bound=Frozen, contravariant=True)


class NoState(Frozen):
    """The state of a workflow that remembers nothing."""


@dataclass(frozen=True)
class Services:
    """What all jobs work with besides the store and the hosts. CHAP passwords are derived from `secret`."""

    rights: Rights
    uploads: Uploads
    secret: bytes


class JobContext(Generic[ParamsT_co, StateT]):
    """One job at work, as its steps see it."""

    def __init__(
        self, params: ParamsT_co, record: Writer[StateT], store: Store, hosts: CommandSender, services: Services
    ) -> None:
        self.params = params
        self.id = record.job.id
        self.target = record.job.target
        self.store = store
        self.rights, self.uploads, self.secret = services.rights, services.uploads, services.secret
        self.cancelled = asyncio.Event()
        """Set once somebody asked to cancel."""
        self.expedited = asyncio.Event()
        """Set once another job asked this one to finish by force now (see `Workflow.expedites`)."""
        self.cancellable = True
        self.undoing = False
        self._record = record
        self._hosts = hosts
        self._asked: dict[str, int] = {}

    @property
    def state(self) -> StateT:
        """The workflow's memory; `remember` and `save` replace it."""
        return self._record.state

    @property
    def attempt(self) -> int:
        """Counts the attempts of undos, and of steps behind the point of no return."""
        return self._record.attempt

    @property
    def result(self) -> dict[str, Any] | None:
        """JSON: what the job ends with, if it ends well."""
        return self._record.job.result

    @result.setter
    def result(self, value: dict[str, Any]) -> None:
        self._record.update(result=value)

    def begin(self, step: str, *, cancellable: bool, undoing: bool) -> None:
        """The runner's word that a step, or its undo, starts."""
        self.cancellable, self.undoing = cancellable, undoing
        self._asked.clear()
        self._record.step = step
        self._record.update(waits_for="")

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Show how far the job is: 0 to 1, or none if nobody can tell."""
        self._record.show(progress=fraction, message=message)

    def waits_for(self, text: str) -> None:
        """Show what the job waits for, in words; "" when it goes on."""
        if text != self._record.job.waits_for:
            self._record.show(waits_for=text)

    def check_cancel(self) -> None:
        """Raise CancelledByUserError if the job was asked to stop and this step may be left; else do nothing."""
        if self.cancelled.is_set() and self.cancellable and not self.undoing:
            raise CancelledByUserError(f"cancelled on request in step {self._record.step!r}")

    async def await_reports(self, vm: VmId) -> None:
        """Wait until all hosts have reported whose word is missing before the VM may start or move."""
        while True:
            news = self.rights.news()
            async with self.store.read() as view:
                missing = await self.rights.waits_for(view, vm)
            if not missing:
                self.waits_for("")
                return
            self.check_cancel()
            names = ", ".join(sorted(missing))
            self.waits_for(f"{names} to report, which may run it (a host that is off for good: serai host fence)")
            await self.until(news.wait())

    async def until(self, waited: Awaitable[object], timeout: float | None = None) -> None:
        """Wait for something: up to `timeout` seconds, and until somebody asks to cancel, if nobody has so far."""
        waits = {asyncio.ensure_future(waited)}
        if not self.cancelled.is_set():
            waits.add(asyncio.ensure_future(self.cancelled.wait()))
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    def remember(self, **changes: Any) -> None:
        """Replace fields of the state; durable with the next write. Raises ValueError if the model refuses them."""
        self._record.remember(changes)

    async def save(self, **changes: Any) -> None:
        """Replace fields of the state, and write it durably now, in mid-step."""
        self._record.remember(changes)
        await self._record.write(quiet=True)

    def command_id(self, tag: str) -> str:
        """The id of a command: the same whenever this step's same attempt asks for the same thing again.

        The n-th request with one tag in an attempt gets an id of its own.
        """
        number = self._asked.get(tag, 0)
        self._asked[tag] = number + 1
        phase = "undo" if self.undoing else "run"
        text = f"{self.id}/{self._record.step}/{phase}/{self.attempt}/{tag}/{number}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    async def send(
        self,
        command: Command[BodyT, ReplyT],
        target: Target,
        body: BodyT,
        *,
        generation: int = 0,
        patience: float | None = None,
        on_progress: OnProgress = ignore,
    ) -> ReplyT:
        """Send one command as part of this job (see `CommandSender.send`)."""
        to = target if isinstance(target, str) else target.vm
        options = SendOptions(
            id=self.command_id(f"{command}/{to}/{command.key(body)}"),
            generation=generation,
            job=self.id,
            patience=patience,
            on_progress=on_progress,
            waits=self.waits_for,
            check=self.check_cancel,
        )
        return await self._hosts.send(command, target, body, options)


AnyContext = JobContext[Any, Any]
"""What a helper takes that several workflows use."""


@dataclass(frozen=True)
class Step(Generic[ParamsT_contra, StateT]):
    """One step; see the module's text for what each mark promises. `run` none: see `written`."""

    name: str
    run: Callable[[JobContext[ParamsT_contra, StateT]], Awaitable[None]] | None
    undo: Callable[[JobContext[ParamsT_contra, StateT]], Awaitable[None]] | None = None
    resume: Callable[[JobContext[ParamsT_contra, StateT]], Awaitable[bool]] | None = None
    repeatable: bool = False
    cancellable: bool = True
    point_of_no_return: bool = False


def written(name: str, undo: Callable[[JobContext[ParamsT, StateT]], Awaitable[None]]) -> Step[ParamsT, StateT]:
    """The first step of a job whose submission changed what was there before; see the module's text."""
    return Step(name, None, undo)


def target_lock(job: Job, params: Frozen) -> Sequence[str]:
    """The usual locks: the resource that the job is about, as `vm/<id>`."""
    noun = job.target.partition("/")[0]
    return (f"{noun}/{job.target_id}" if job.target_id else job.target,)


@dataclass(frozen=True)
class Workflow(Generic[ParamsT, StateT]):
    """A kind of job.

    `version` grows whenever `state` or what a step means changes: jobs that an older Serai began are only undone.
    `locks` names what a job holds from its first step to its end; others queue behind it.
    `preempts` names the kinds that a job does not wait for: those before it are asked to stop. They are cancelled, or,
    where `expedites`, told by `JobContext.expedited` to finish by force now.
    `outlives_restore`: the hosts' journals say how it ends, so it goes on though its record is from a backup.
    """

    kind: str
    params: type[ParamsT]
    state: type[StateT]
    steps: Sequence[Step[ParamsT, StateT]]
    version: int = 1
    locks: Callable[[Job, ParamsT], Sequence[str]] = target_lock
    preempts: Callable[[ParamsT], Sequence[str]] = lambda _: ()
    expedites: bool = False
    outlives_restore: bool = False
