"""`serai completion`: the script that makes a shell complete Serai's words, names of VMs and hosts included."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from serai.app.cli.output import say

app = typer.Typer(rich_markup_mode=None, add_completion=False)


class Shell(StrEnum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="Which shell.")]) -> None:
    """Print the completion script for a shell.

    \b
    Examples:
      serai completion bash > /etc/bash_completion.d/serai
      source <(serai completion bash)
    """
    from typer._completion_shared import get_completion_script

    say(get_completion_script(prog_name="serai", complete_var="_SERAI_COMPLETE", shell=shell.value))
