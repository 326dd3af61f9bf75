"""`serai diff`: what apply would change."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from serai.app.cli.apply import FilesOption, documents_in, planned
from serai.app.cli.output import say
from serai.app.cli.session import run

if TYPE_CHECKING:
    from serai.app.cli.changes import Change
    from serai.client.http import Client

app = typer.Typer(rich_markup_mode=None, add_completion=False)

COLOURS = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}


@app.command()
def diff(ctx: typer.Context, file: FilesOption) -> None:
    """Show what apply would change, and change nothing. Exits 1 if there is a difference, as diff does.

    \b
    Example: serai diff -f site.yaml
    """
    from serai.app.cli.changes import difference

    documents = documents_in(file)

    async def compare(client: Client) -> list[Change]:
        return await planned(client, documents)

    texts = [text for change in run(ctx, compare) if (text := difference(change))]
    for text in texts:
        for line in text.splitlines():
            colour = COLOURS.get(line[:1]) if sys.stdout.isatty() else None
            say(line, colour=colour)
    if texts:
        raise typer.Exit(1)
