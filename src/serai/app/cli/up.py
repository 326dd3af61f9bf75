"""`serai up`: this machine as a whole installation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def up(
    name: Annotated[str | None, typer.Option(help="This host's name; the machine's own unless given.")] = None,
    state: Annotated[Path, typer.Option(help="Where its state is.")] = Path("/var/lib/serai"),
    run: Annotated[Path, typer.Option(help="Where its sockets are.")] = Path("/run/serai"),
    listen: Annotated[str, typer.Option(help="Where the API listens beside its socket.")] = "127.0.0.1:7440",
    allow_unsandboxed: Annotated[
        bool, typer.Option("--allow-unsandboxed", help="Start VMs even where QEMU has no sandbox: less safe.")
    ] = False,
) -> None:
    """Run controller and agent on this machine, in one process, until it is stopped.

    VMs go on when it stops, and are adopted when it starts again. The first start makes the pool `local` and the
    network `default` (192.168.127.0/24: VMs and this machine); `serai host network take` puts a bridge on an uplink.

    \b
    Examples:
      serai up
      serai up --name rack1 --listen 127.0.0.1:8440
    """
    from serai.app.cli.invalid import build
    from serai.app.up import UpConfig, own_name, serve
    from serai.lib import service

    given = {"name": name or own_name(), "state": state, "run": run, "allow_unsandboxed": allow_unsandboxed}
    # Empty is no address at all, and not the default.
    config = build(UpConfig, given).model_copy(update={"listen": listen or None})
    sys.exit(service.run("serai", lambda frame: serve(config, frame)))
