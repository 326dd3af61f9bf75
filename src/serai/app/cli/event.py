"""`serai event`: what happened, in order."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.app.cli.action import listing
from serai.app.cli.options import LimitOption, Output, OutputOption, noun
from serai.app.cli.output import plain, say, to_json
from serai.app.cli.session import run
from serai.schema.text import visible

if TYPE_CHECKING:
    from serai.client.http import Client

app = noun("What happened, in order.", "serai event list --last 20", "serai event watch")

AfterOption = Annotated[int | None, typer.Option(min=0, metavar="SEQ", help="Only those after this number.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    after: AfterOption = 0,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only of this kind: job.state, or job for all that begin so.")
    ] = None,
    resource: Annotated[
        str | None, typer.Option(metavar="RESOURCE", help="Only of this resource: vm/web1, or its id.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the newest N of these.")] = None,
    limit: LimitOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List events, oldest first. With -o wide the time is told with its zone.

    \b
    Examples:
      serai event list --last 20
      serai event list --after 120 --resource vm/web1
      serai event list --kind job -o wide
    """
    query = {"after": after, "kind": kind, "resource": resource, "last": last}
    listing(ctx, "event", output, limit=limit, query=query)


@app.command()
def watch(
    ctx: typer.Context,
    after: AfterOption = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show events as they happen, one a line, until Ctrl-C; a lost connection is taken up again with none missed.

    \b
    Examples:
      serai event watch
      serai event watch --after 120 -o json
    """

    async def follow(client: Client) -> None:
        left = count
        async with aclosing(client.events(after)) as events:
            async for event in events:
                say(_line(event, output))
                left = None if left is None else left - 1
                if left == 0:
                    return

    run(ctx, follow)


def _line(event: Any, output: Output) -> str:
    if output in (Output.JSON, Output.YAML):
        # One document a line: YAML reads JSON, and a stream has no end that could close a list.
        return to_json(plain(event), indent=None)
    if output is Output.NAME:
        return str(event.seq)
    moment = event.time.astimezone().strftime("%H:%M:%S")
    return visible(f"{event.seq:>6}  {moment}  {event.kind:<14} {event.resource:<20} {event.message}".rstrip())
