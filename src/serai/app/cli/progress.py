"""Following a job before the user's eyes.

On a terminal the steps are drawn live; elsewhere each change is one line on standard error, so that a log tells the
same story. Ctrl-C never decides anything silently: on a terminal it asks whether to cancel the job or to leave it
running, draws nothing until that is answered, and takes the question back when the job ends first; elsewhere it leaves
the job and says how to watch and how to cancel it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

import typer

from serai.app.cli.output import COLOURS, note
from serai.lib.tasks import first_of
from serai.schema.text import visible

if TYPE_CHECKING:
    from rich.console import Group

    from serai.client.http import Client
    from serai.schema.job import Job

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended."""
SYMBOLS = {"done": "✓", "failed": "✗", "undone": "↶", "skipped": "–", "pending": "·", "running": "▸"}


class Lines:
    """One line for each change. `pause` and `resume` make room for a question, as in `Live`."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._seen: dict[str, str] = {}

    def update(self, job: Job) -> None:
        """Print what is new."""
        for step in job.steps:
            self._say(f"step {step.name}", str(step.state), step.detail, quiet="pending")
        if job.waits_for:
            self._say("waits for", job.waits_for)
        if job.message:
            self._say("says", job.message)
        self._say(f"job {job.id}", str(job.state))

    def _say(self, what: str, state: str, detail: str = "", *, quiet: str = "") -> None:
        if self._seen.get(what) == state or (state == quiet and what not in self._seen):
            return
        self._seen[what] = state
        text = f"[{time.monotonic() - self._begin:6.2f}s] {what}: {state}" + (f" ({detail})" if detail else "")
        note(visible(text))

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Live:
    """Steps redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._job: Job | None = None
        self._paused = False
        self._live = RichLive(
            get_renderable=self._draw, console=Console(stderr=True), refresh_per_second=10, transient=False
        )

    def update(self, job: Job) -> None:
        """Draw the job's new state."""
        self._job = job
        if self._paused:
            return
        if not self._live.is_started:
            self._live.start()
        if job.state.ended:
            self._live.stop()

    def pause(self) -> None:
        """Leave the terminal alone, whatever is updated meanwhile."""
        self._paused = True
        self._live.stop()

    def resume(self) -> None:
        """Draw again what is known by now."""
        self._paused = False
        if self._job is not None:
            self.update(self._job)

    def _draw(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from serai.app.cli.views import took

        job = self._job
        if job is None:
            return Group()
        table = Table(box=None, pad_edge=False, show_header=False)
        for step in job.steps:
            style = {"running": "bold cyan", "pending": "dim"}.get(step.state, COLOURS.get(step.state, ""))
            table.add_row(
                Text(SYMBOLS[step.state], style), Text(step.name, style), took(step), Text(visible(step.detail))
            )
        head = Text(visible(f"{job.kind} {job.target}: {job.state}"), COLOURS.get(job.state, ""))
        if job.progress is not None and not job.state.ended:
            filled = round(job.progress * 30)
            head.append(f"  [{'█' * filled}{' ' * (30 - filled)}] {job.progress:.0%}")
        remarks = [
            Text(visible(text), "yellow")
            for text in (job.waits_for and f"waits for {job.waits_for}", job.message)
            if text
        ]
        return Group(head, table, *remarks)


class Answer(Enum):
    """What became of the question."""

    CANCEL = auto()
    LEAVE = auto()
    WITHDRAWN = auto()
    """The job ended before anybody answered."""


async def follow(client: Client, job: Job) -> Job:
    """Show a job until it ends and return it. Raises typer.Exit if the user leaves it running."""
    view = Live() if sys.stderr.isatty() else Lines()
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    waiting = asyncio.create_task(client.wait_job(job.id, view.update), name=f"follow {job.id}")
    try:
        while True:
            await first_of(asyncio.wait({waiting}), interrupted.wait())
            if waiting.done():
                return waiting.result()
            interrupted.clear()
            view.pause()
            answer = await _ask(waiting, interrupted)
            if answer is Answer.LEAVE:
                _left(job)
                raise typer.Exit(INTERRUPTED)
            if answer is Answer.CANCEL:
                await _cancel(client, job)
            view.resume()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        view.pause()


async def _cancel(client: Client, job: Job) -> None:
    from serai.schema.errors import ConflictError

    try:
        await client.call("job.cancel", job.id)
    except ConflictError:
        note("The job ended before it could be asked to stop.")
    else:
        note("The job was asked to stop and undo; following it to its end.")


async def _ask(waiting: asyncio.Task[Job], interrupted: asyncio.Event) -> Answer:
    """Ask; a second Ctrl-C, an empty answer and a missing terminal all mean: leave it running."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return Answer.LEAVE
    sys.stderr.write("\nCancel the job, or leave it running? [c/L] ")
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), readable.set)
    try:
        await first_of(readable.wait(), interrupted.wait(), asyncio.wait({waiting}))
    finally:
        loop.remove_reader(sys.stdin.fileno())
    if readable.is_set():
        # The terminal hands over whole lines: this does not block.
        return Answer.CANCEL if sys.stdin.readline().strip().lower() in ("c", "cancel") else Answer.LEAVE
    if waiting.done():
        note("\nThe job has ended meanwhile.")
        return Answer.WITHDRAWN
    return Answer.LEAVE


def _left(job: Job) -> None:
    note(f"Job {job.id} goes on. Watch it: serai job wait {job.id}   Cancel it: serai job cancel {job.id}")
