"""What all verbs that start a job have in common: send it, follow it, say how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from serai.app.cli.options import Output
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
    done: str,
) -> None:
    """A verb upon one resource: `vm web1 <done>` is what people read at the end."""
    job = run(ctx, lambda client: started(client, endpoint, name, body, query, wait=wait))
    report(job, output, lambda _: f"{endpoint.partition('.')[0]} {name} {done}", name=name)


def create(
    ctx: typer.Context, kind: str, name: str, body: BaseModel, *, wait: bool, output: Output, done: str = "created"
) -> None:
    """Create a resource by a job; with `wait` the new resource is what is printed, and `done` is what people read."""

    async def both(client: Client) -> tuple[Job, Any]:
        job = await started(client, f"{kind}.create", None, body, wait=wait)
        return job, await client.call(f"{kind}.show", name) if wait else None

    job, item = run(ctx, both)
    if item is None:
        report(job, output, lambda _: f"{kind} {name} {done}", name=name)
    elif output is Output.TABLE:
        say(f"{kind} {name} {done}" + created_note(kind, item))
    else:
        show(kind, item, output)
    for condition in getattr(item.status, "conditions", []) if item is not None else []:
        note(visible(f"{condition.type}: {condition.message}"))


def created_note(kind: str, item: Any) -> str:
    """What people want to know of a new resource at once."""
    if kind == "vm":
        status = item.status
        where = f" on {status.host}" if status.host else ""
        at = f" at {', '.join(status.addresses)}" if status.addresses else ""
        why = f" ({status.placement})" if status.placement else ""
        return f": {status.state}{where}{at}{why}"
    if kind == "pool":
        return f": {item.status.state} on {item.spec.host}"
    return f": {item.status.state}"


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


def showing(ctx: typer.Context, kind: str, name: str, output: Output) -> None:
    """Print one."""
    show(kind, run(ctx, lambda client: client.call(f"{kind}.show", name)), output)
