"""`serai context`: which API to talk to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serai.app.cli import complete
from serai.app.cli.options import NameArgument, Output, OutputOption, noun
from serai.app.cli.output import draw, grid, note, say
from serai.schema.text import visible

if TYPE_CHECKING:
    from serai.client.context import Contexts

app = noun("Which API to talk to.", "serai context list", "serai context use lab")

KnownArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A context.", autocompletion=complete.contexts_known)
]


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List the contexts; the current one has a star.

    \b
    Example: serai context list
    """
    from serai.client import context as contexts

    known = contexts.load()
    if output in (Output.JSON, Output.YAML):
        say(json.dumps(known.model_dump(mode="json", exclude_defaults=True), indent=2))
        return
    if output is Output.NAME:
        for name in known.contexts:
            say(name)
    elif known.contexts:
        _table(known)
    if not known.contexts:
        note("There are no contexts; this machine's own controller is used if it runs.")


def _table(known: Contexts) -> None:
    table = grid("", "NAME", "WHERE")
    for name, context in known.contexts.items():
        table.add_row("*" if name == known.current else "", visible(name), visible(context.where))
    draw(table)


@app.command("show")
def show_(ctx: typer.Context) -> None:
    """Show the context that commands use now.

    \b
    Example: serai context show
    """
    from serai.app.cli.session import chosen

    name, context = chosen(ctx)
    say(f"{name}  {context.where}")


@app.command()
def use(name: KnownArgument) -> None:
    """Make a context the current one.

    \b
    Example: serai context use lab
    """
    from serai.client import context as contexts

    contexts.use(name)
    say(f"context {name} is current")


@app.command("set")
def set_(
    name: NameArgument,
    url: Annotated[str | None, typer.Option(help="The API's address, https://HOST:PORT.")] = None,
    socket: Annotated[Path | None, typer.Option(help="The API's Unix socket.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file that holds the bearer token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The CA that signed the server's certificate (PEM).")] = None,
    use_now: Annotated[bool, typer.Option("--use/--no-use", help="Make it the current one.")] = True,
) -> None:
    """Add or replace a context. The token stays in its own file.

    \b
    Example: serai context set office --url https://serai.example:8443 --token-file ~/.config/serai/office.token
    """
    from serai.app.cli.invalid import build
    from serai.client import context as contexts

    fields = {"url": url, "socket": _whole(socket), "token_file": _whole(token_file), "ca": _whole(ca)}
    contexts.put(name, build(contexts.Context, fields), use=use_now)
    say(f"context {name} {'is current' if use_now else 'stored'}")


@app.command()
def delete(name: KnownArgument) -> None:
    """Forget a context.

    \b
    Example: serai context delete office
    """
    from serai.client import context as contexts

    contexts.remove(name)
    say(f"context {name} deleted")


def _whole(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()
