"""`serai`: finds the noun's file, and turns errors into one sentence and an exit code.

Nouns are loaded only when they are used; help and completion read the table below. Exit codes: 0 done, 1 refused or
failed (`diff`: there is a difference), 2 wrong usage, 130 left by Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from serai.app.cli import complete

COMPLETE = "_SERAI_COMPLETE"
"""Set by the completion script while it asks what a word may become."""


NOUNS = {
    "vm": "Virtual machines: create, move, change, reach them.",
    "host": "Physical machines and their uplinks.",
    "pool": "Places for volumes on hosts.",
    "volume": "Disks of VMs.",
    "image": "What VMs start from: build or import.",
    "network": "Networks that VMs join.",
    "job": "Long actions: watch, cancel, explain.",
    "event": "What happened, in order.",
    "apply": "Create or change what files describe.",
    "diff": "Show what apply would change.",
    "context": "Which API to talk to.",
    "doctor": "What this machine can do, and what it lacks.",
    "lab": "Several hosts on this one machine, to try and test.",
    "up": "Run controller and agent on this machine, in one process.",
    "completion": "Print the completion script for a shell.",
}
"""Each noun's line in the help. It has a module here, with a Typer `app`."""


class Nouns(TyperGroup):
    """The nouns of `NOUNS`, each loaded when it is called."""

    in_help = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The noun's commands; while help is printed, only its line."""
        if cmd_name not in NOUNS:
            return None
        if self.in_help or (ctx.resilient_parsing and ctx.info_name is None):
            return TyperGroup(name=cmd_name, help=NOUNS[cmd_name])
        command = get_command(importlib.import_module(f"serai.app.cli.{cmd_name}").app)
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
