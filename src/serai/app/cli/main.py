"""`serai`: finds the noun's file, and turns errors into one sentence and an exit code.

Nouns are loaded only when they are used; help and completion read the table below. Exit codes: 0 done, 1 refused or
failed (`diff`: there is a difference), 2 wrong usage, 130 left by Ctrl-C.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from serai.app.cli import complete

COMPLETE = "_SERAI_COMPLETE"
"""Set by the completion script while it asks what a word may become."""


@dataclass(frozen=True, slots=True)
class Noun:
    """Where a noun is, and its line in the help. The module has a Typer `app`."""

    module: str
    help: str


NOUNS: dict[str, Noun] = {
    "vm": Noun("serai.app.cli.vm", "Virtual machines: create, move, change, reach them."),
    "host": Noun("serai.app.cli.host", "Physical machines and their uplinks."),
    "pool": Noun("serai.app.cli.pool", "Places for volumes on hosts."),
    "volume": Noun("serai.app.cli.volume", "Disks of VMs."),
    "image": Noun("serai.app.cli.image", "What VMs start from: build or import."),
    "network": Noun("serai.app.cli.network", "Networks that VMs join."),
    "job": Noun("serai.app.cli.job", "Long actions: watch, cancel, explain."),
    "event": Noun("serai.app.cli.event", "What happened, in order."),
    "apply": Noun("serai.app.cli.apply", "Create or change what files describe."),
    "diff": Noun("serai.app.cli.diff", "Show what apply would change."),
    "context": Noun("serai.app.cli.context", "Which API to talk to."),
    "doctor": Noun("serai.app.cli.doctor", "What this machine can do, and what it lacks."),
    "lab": Noun("serai.app.cli.lab", "Several hosts on this one machine, to try and test."),
    "up": Noun("serai.app.cli.up", "Run controller and agent on this machine, in one process."),
    "completion": Noun("serai.app.cli.completion", "Print the completion script for a shell."),
}


class Nouns(TyperGroup):
    """The nouns of `NOUNS`, each loaded when it is called."""

    in_help = False

    def list_commands(self, ctx: Any) -> list[str]:
        """All nouns that this installation has."""
        return [name for name, noun in NOUNS.items() if importlib.util.find_spec(noun.module) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The noun's commands; while help is printed, only its line."""
        noun = NOUNS.get(cmd_name)
        if noun is None:
            return None
        if self.in_help or (ctx.resilient_parsing and ctx.info_name is None):
            return TyperGroup(name=cmd_name, help=noun.help)
        if importlib.util.find_spec(noun.module) is None:
            return None
        command = get_command(importlib.import_module(noun.module).app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, without loading a single noun."""
        self.in_help = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.in_help = False


app = typer.Typer(cls=Nouns, rich_markup_mode=None, add_completion=False, no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"serai {version('serai')}\n")
        raise typer.Exit


@app.callback()
def root(
    context: Annotated[
        str | None,
        typer.Option(
            help="The API to talk to, by its name in the context file.", autocompletion=complete.contexts_known
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Run virtual machines on machines you own, and move them while they run.

    \b
    Examples:
      serai lab up --hosts 3
      serai image build tiny
      serai vm create web1 --image tiny --memory 128M --network lan
      serai vm migrate web1 --to h2
      serai vm list -o wide
    """


def main(argv: list[str] | None = None) -> None:
    """Run one command line. Raises SystemExit with its code, always."""
    if COMPLETE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
    command = get_command(app)
    try:
        command.main(args=argv, prog_name="serai")
    except UnicodeEncodeError as error:
        # What the shell gave was no UTF-8; Python keeps such bytes as characters that cannot be sent.
        text = str(error.object).encode(errors="backslashreplace").decode()
        sys.stderr.write(f"serai: this text is not UTF-8: {text[:120]}\n")
        raise SystemExit(2) from None
    except Exception as error:
        # Imported here, since help has no use for what the error tree brings along.
        from serai.app.cli.invalid import USAGE
        from serai.schema.errors import SeraiError
        from serai.schema.text import visible

        if not isinstance(error, SeraiError):
            raise
        sys.stderr.write(f"serai: {visible(str(error))}\n")
        raise SystemExit(2 if USAGE in getattr(error, "__notes__", ()) else 1) from None


if __name__ == "__main__":
    main()
