"""Jobs as data: what a workflow is, and what its steps get to work with. `engine.py` runs them.

A workflow is a list of named steps, recorded before and after each runs. The rules that a step is written to:

- `run` may be called again after a controller crash only if the step says `repeatable`; commands sent through
  `JobContext.send` carry ids derived from job, step and attempt, so a repeated step asks the same commands again and
  is answered alike. A step that is not repeatable and was found running is asked by `resume(ctx)`: True means "done
  after all, go on", False "undo". Without `resume` it is undone.
- `undo` runs, in reverse order, for every step that was done, and for the one that failed or was interrupted: it must
  tolerate that nothing, or half, was done. A failing undo is tried again until it succeeds, and `waits_for` says why.
- After a step with `point_of_no_return` nothing is undone: cancelling is too late, and a later step that fails is tried
  again until it succeeds. Those later steps must be repeatable.
- A step that is `written` is what whoever submitted the job wrote in the same transaction. It is done from the
  beginning: it never runs, and its undo takes that back whatever becomes of the job, also if none of it ever began.
- A cancel takes effect before the next step that is `cancellable`, and inside one wherever it calls `check_cancel`
  or waits for a host that does not answer. A step that can stop what it started watches `cancelled` itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from serai.controller.commands import CommandSender, OnProgress, SendOptions, Target, ignore
from serai.schema.commands.base import BodyT, Command, ReplyT
from serai.schema.errors import CancelledByUserError
from serai.schema.job import Job

if TYPE_CHECKING:
    from serai.controller.store import Store


class JobHost(Protocol):
    """What a context needs from the engine."""

    async def save(self, ctx: JobContext) -> None:
        """Write the context's `data` durably, now."""
        ...

    def touched(self, ctx: JobContext) -> None:
        """Progress or `waits_for` changed: show it soon."""
        ...


class JobContext:
    """One job at work, as its steps see it."""

    def __init__(self, job: Job, data: dict[str, Any], store: Store, hosts: CommandSender, engine: JobHost) -> None:
        self.id = job.id
        self.kind = job.kind
        self.target = job.target
        self.params: Mapping[str, Any] = job.params
        self.requested_by = job.requested_by
        self.data = data
        """JSON, the workflow's own memory: written with each step, and at once by `save`."""
        self.result: dict[str, Any] | None = job.result
        """What the job ends with, if it ends well."""
        self.store = store
        self.hosts = hosts
        self.cancelled = asyncio.Event()
        """Set once somebody asked to cancel."""
        self.hurried = asyncio.Event()
        """Set once a job waits that does not want to wait this one out (see `Workflow.hurries`)."""
        self.step = ""
        self.cancellable = True
        self.undoing = False
        self.attempt = 0
        self.fraction: float | None = job.progress
        self.message = job.message
        self.waiting = ""
        self._engine = engine
        self._asked: dict[str, int] = {}

    def begin(self, step: str, *, cancellable: bool, undoing: bool, attempt: int) -> None:
        """The engine's word that a step, or its undo, starts."""
        self.step, self.cancellable, self.undoing, self.attempt = step, cancellable, undoing, attempt
        self._asked.clear()
        self.waiting = ""

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Show how far the job is: 0 to 1, or none if nobody can tell."""
        self.fraction, self.message = fraction, message
        self._engine.touched(self)

    def waits_for(self, text: str) -> None:
        """Show what the job waits for, in words; "" when it goes on."""
        if text != self.waiting:
            self.waiting = text
            self._engine.touched(self)

    def check_cancel(self) -> None:
        """Raise CancelledByUserError if the job was asked to stop and this step may be left; else do nothing."""
        if self.cancelled.is_set() and self.cancellable and not self.undoing:
            raise CancelledByUserError(f"cancelled on request in step {self.step!r}")

    async def save(self) -> None:
        """Write `data` durably, now, in mid-step."""
        await self._engine.save(self)

    def command_id(self, tag: str) -> str:
        """The id of a command: the same whenever this step's same attempt asks for the same thing again.

        The n-th request with one tag in an attempt gets an id of its own.
        """
        number = self._asked.get(tag, 0)
        self._asked[tag] = number + 1
        phase = "undo" if self.undoing else "run"
        text = f"{self.id}/{self.step}/{phase}/{self.attempt}/{tag}/{number}"
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
        return await self.hosts.send(command, target, body, options)


StepRun = Callable[[JobContext], Awaitable[None]]
StepResume = Callable[[JobContext], Awaitable[bool]]


@dataclass(frozen=True)
class StepDef:
    """One step; see the module's text for what each mark promises."""

    name: str
    run: StepRun
    undo: StepRun | None = None
    resume: StepResume | None = None
    repeatable: bool = False
    cancellable: bool = True
    point_of_no_return: bool = False
    written: bool = False


async def _never(ctx: JobContext) -> None:
    raise AssertionError(f"step {ctx.step} is done from the beginning")


def written(name: str, undo: StepRun) -> StepDef:
    """The first step of a job whose submission changed what was there before; see the module's text."""
    return StepDef(name, _never, undo=undo, written=True)


def target_lock(job: Job) -> Sequence[str]:
    """The usual locks: the resource that the job is about, as `vm/<id>`."""
    noun = job.target.partition("/")[0]
    return (f"{noun}/{job.target_id}" if job.target_id else job.target,)


def nobody(job: Job) -> Sequence[str]:
    """Most jobs wait for their turn."""
    return ()


@dataclass(frozen=True)
class Workflow:
    """A kind of job. `locks` names what a job holds from its first step to its end; others queue behind it.

    `overtakes` names the kinds that a job does not wait out: those before it are asked to give way. They do so by being
    cancelled, or, where `hurries`, by coming to their own end at once: `JobContext.hurried` tells them.
    """

    kind: str
    steps: Sequence[StepDef]
    locks: Callable[[Job], Sequence[str]] = target_lock
    overtakes: Callable[[Job], Sequence[str]] = nobody
    hurries: bool = False
