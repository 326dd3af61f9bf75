"""What verbs have in common: those that start a job send it, follow it and say how it ended; and the verbs that several
nouns have alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from serai.app.cli.options import AwayOption, LimitOption, Output, OutputOption, WaitOption
from serai.app.cli.output import note, say, show, show_list
from serai.app.cli.session import run
from serai.schema.text import visible

if TYPE_CHECKING:
    from pydantic import BaseModel

    from serai.client.http import Client, Query
    from serai.schema.job import Job


async def started(
    client: Client,
    endpoint: str,
    name: str | None = None,
    body: BaseModel | Mapping[str, Any] | None = None,
    query: Query | None = None,
    *,
    wait: bool,
) -> Job:
    """Start a job; with `wait`, follow it. Raises the job's own error if it failed or was cancelled."""
    from serai.app.cli.progress import follow

    job: Job = await client.call(endpoint, name, body, query)
    return ended_well(await follow(client, job)) if wait else job


def ended_well(job: Job) -> Job:
    """The job itself, or the error that ended it."""
    from serai.schema.errors import CancelledByUserError, HostError, from_info
    from serai.schema.job import JobState

    if job.error is not None:
        raise from_info(job.error)
    remedy = f"See: serai job show {job.id}."
    if job.state is JobState.CANCELLED:
        raise CancelledByUserError("the job was cancelled and undone", field="job", value=job.id, remedy=remedy)
    if job.state is JobState.FAILED:
        raise HostError("the job failed", field="job", value=job.id, remedy=remedy)
    return job


def report(job: Job, output: Output, done: Callable[[Job], str], *, name: str) -> None:
    """Say how a job stands: `done` gives the sentence for one that has ended well."""
    if output in (Output.JSON, Output.YAML):
        show("job", job, output)
    elif not job.state.ended:
        say(job.id)
        note(f"Started. Watch it: serai job wait {job.id}")
    elif output is Output.NAME:
        say(name)
    else:
        say(done(job))


def act(
    ctx: typer.Context,
    endpoint: str,
    name: str,
    body: BaseModel | Mapping[str, Any] | None = None,
    query: Query | None = None,
    *,
    wait: bool,
    output: Output,
    done: str | Callable[[Job], str],
) -> None:
    """A verb upon one resource: `vm web1 <done>` is what people read at the end."""

    def sentence(job: Job) -> str:
        return f"{endpoint.partition('.')[0]} {name} {done if isinstance(done, str) else done(job)}"

    report(
        run(ctx, lambda client: started(client, endpoint, name, body, query, wait=wait)), output, sentence, name=name
    )


def create(
    ctx: typer.Context,
    kind: str,
    body: Any,
    *,
    wait: bool,
    output: Output,
    done: str = "created",
    start: Callable[[Client], Awaitable[Job]] | None = None,
) -> None:
    """Create what `body` describes; with `wait` it is what is printed, and `done` is what people read.

    `start` gives the job, where more than the one call is needed for it.
    """
    name: str = body.name

    async def both(client: Client) -> tuple[Job, Any]:
        starting = start(client) if start is not None else started(client, f"{kind}.create", None, body, wait=wait)
        return await starting, await client.call(f"{kind}.show", name) if wait else None

    job, item = run(ctx, both)
    if item is None:
        report(job, output, lambda _: f"{kind} {name} {done}", name=name)
        return
    told(kind, item, output, f"{kind} {name} {done}{_created_note(kind, item)}")
    for condition in getattr(item.status, "conditions", []):
        note(visible(f"{condition.type}: {condition.message}"))


def told(kind: str, item: Any, output: Output, text: str) -> None:
    """Print a resource after a change: for people, `text`."""
    if output is Output.TABLE:
        say(text)
    else:
        show(kind, item, output)


def _created_note(kind: str, item: Any) -> str:
    """What people want to know of a new resource at once."""
    if kind == "vm":
        status = item.status
        where = f" on {status.host}" if status.host else ""
        at = f" at {', '.join(status.addresses)}" if status.addresses else ""
        why = f" ({status.placement})" if status.placement else ""
        return f": {status.state}{where}{at}{why}"
    return f": {item.status.state}" + (f" on {item.spec.host}" if kind == "pool" else "")


def listing(
    ctx: typer.Context, kind: str, output: Output, *, limit: int | None = None, query: Query | None = None
) -> None:
    """Print all of a kind."""

    async def all_of(client: Client) -> list[Any]:
        return [item async for item in client.items(f"{kind}.list", query, limit=limit)]

    items = run(ctx, all_of)
    show_list(kind, items, output)
    if not items and output in (Output.TABLE, Output.WIDE):
        note(f"There is no {kind} here." if not query else f"No {kind} matches.")


def _add(
    app: typer.Typer, verb: str, function: Callable[..., None], types: dict[str, Any], text: str, *examples: str
) -> None:
    """Put a verb under a noun. `types` are what Typer is to know of those parameters that differ between nouns."""
    function.__annotations__ |= types
    shown = f"Example: {examples[0]}" if len(examples) == 1 else "\n".join(["Examples:", *(f"  {e}" for e in examples)])
    app.command(verb, help=f"{text}\n\n\b\n{shown}")(function)


def add_list(app: typer.Typer, kind: str, text: str, example: str) -> None:
    """The verb `list` of a noun, without filters."""

    def list_(ctx: typer.Context, limit: LimitOption = None, output: OutputOption = Output.TABLE) -> None:
        listing(ctx, kind, output, limit=limit)

    _add(app, "list", list_, {}, text, example)


def add_show(app: typer.Typer, kind: str, argument: Any, text: str, example: str) -> None:
    """The verb `show` of a noun."""

    def show_(ctx: typer.Context, name: str, output: OutputOption = Output.TABLE) -> None:
        show(kind, run(ctx, lambda client: client.call(f"{kind}.show", name)), output)

    _add(app, "show", show_, {"name": argument}, text, example)


def add_delete(app: typer.Typer, kind: str, argument: Any, text: str, *examples: str, force: Any = AwayOption) -> None:
    """The verb `delete` of a noun, by a job."""

    def delete(
        ctx: typer.Context, name: str, force: bool = False, wait: WaitOption = True, output: OutputOption = Output.TABLE
    ) -> None:
        query = {"force": True} if force else None
        act(ctx, f"{kind}.delete", name, query=query, wait=wait, output=output, done="deleted")

    _add(app, "delete", delete, {"name": argument, "force": force}, text, *examples)


def add_act(app: typer.Typer, endpoint: str, argument: Any, text: str, example: str, done: str) -> None:
    """A verb upon one resource that needs no more than its name."""

    def acting(ctx: typer.Context, name: str, wait: WaitOption = True, output: OutputOption = Output.TABLE) -> None:
        act(ctx, endpoint, name, wait=wait, output=output, done=done)

    _add(app, endpoint.partition(".")[2], acting, {"name": argument}, text, example)
