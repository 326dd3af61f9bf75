"""`serai job`: long actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from serai.app.cli import complete
from serai.app.cli.action import add_show, ended_well, listing, report
from serai.app.cli.options import JobArgument, LimitOption, Output, OutputOption, noun
from serai.app.cli.output import note, show
from serai.app.cli.session import run

if TYPE_CHECKING:
    from serai.client.http import Client
    from serai.schema.job import Job

app = noun("Long actions: watch, cancel, explain.", "serai job list --state running", "serai job show 0123456789ab")


@app.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[
        str | None,
        typer.Option(help="Only in this state: running, done, failed, …", autocompletion=complete.job_states),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only upon this resource, such as vm/web1.")] = None,
    limit: LimitOption = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List jobs, newest first.

    \b
    Example: serai job list --target vm/web1
    """
    listing(ctx, "job", output, limit=limit, query={"state": state, "target": target})


add_show(
    app,
    "job",
    JobArgument,
    "Show one job: who asked, its steps, what it waits for, how it ended.",
    "serai job show 0123456789ab -o json",
)


@app.command()
def cancel(ctx: typer.Context, job: JobArgument, output: OutputOption = Output.TABLE) -> None:
    """Ask a job to stop and to undo what it did.

    \b
    Example: serai job cancel 0123456789ab
    """
    asked = run(ctx, lambda client: client.call("job.cancel", job))
    if output is Output.TABLE:
        note(f"Asked job {job} to stop; it is {asked.state}. Watch it: serai job wait {job}")
    else:
        show("job", asked, output)


@app.command()
def wait(ctx: typer.Context, job: JobArgument, output: OutputOption = Output.TABLE) -> None:
    """Follow a job to its end; exits 1 if it failed.

    \b
    Example: serai job wait 0123456789ab
    """
    from serai.app.cli.progress import follow

    async def to_its_end(client: Client) -> Job:
        return ended_well(await follow(client, await client.job(job)))

    ended = run(ctx, to_its_end)
    report(ended, output, lambda done: f"{done.kind} {done.target} {done.state}", name=job)
