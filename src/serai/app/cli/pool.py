"""`serai pool`: places for volumes."""

from __future__ import annotations

from typing import Annotated

import typer

from serai.app.cli import complete, parse
from serai.app.cli.action import add_delete, add_list, add_show, create
from serai.app.cli.options import (
    DescriptionOption,
    LabelOption,
    NameArgument,
    Output,
    OutputOption,
    PoolArgument,
    WaitOption,
    noun,
)

app = noun("Places for volumes on hosts.", "serai pool create shared0 --host h1", "serai pool list")


@app.command("create")
def create_(
    ctx: typer.Context,
    name: NameArgument,
    host: Annotated[str, typer.Option(help="The host that holds it.", autocompletion=complete.hosts)],
    driver: Annotated[str, typer.Option(metavar="dir", help="What it is made of.")] = "dir",
    path: Annotated[str, typer.Option(help="Its directory on the host; the agent's own unless told.")] = "",
    export: Annotated[str, typer.Option(metavar="iscsi|none", help="How other hosts reach its volumes.")] = "iscsi",
    label: LabelOption = None,
    description: DescriptionOption = "",
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a pool on a host.

    \b
    Examples:
      serai pool create shared0 --host h1
      serai pool create scratch --host h2 --path /srv/scratch --export none
    """
    from serai.app.cli.invalid import build
    from serai.schema.volume import PoolCreate

    spec = {"host": host, "driver": driver, "path": path, "export": export}
    document = {"name": name, "spec": spec, "labels": parse.labels(label), "description": description}
    create(ctx, "pool", build(PoolCreate, document), wait=wait, output=output)


add_list(app, "pool", "List pools, with what they hold.", "serai pool list")
add_show(app, "pool", PoolArgument, "Show one pool.", "serai pool show shared0")
add_delete(
    app, "pool", PoolArgument, "Delete an empty pool.", "serai pool delete scratch", "serai pool delete scratch --force"
)
