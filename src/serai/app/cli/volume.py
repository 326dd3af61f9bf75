"""`serai volume`: disks of VMs."""

from __future__ import annotations

from typing import Annotated

import typer

from serai.app.cli import complete, parse
from serai.app.cli.action import act, add_delete, add_show, create, listing
from serai.app.cli.options import (
    DescriptionOption,
    LabelOption,
    LimitOption,
    NameArgument,
    Output,
    OutputOption,
    VolumeArgument,
    WaitOption,
    noun,
)

app = noun("Disks of VMs.", "serai volume create data1 --pool shared0 --size 10G", "serai volume list --vm web1")

SizeArgument = Annotated[
    str, typer.Argument(metavar="SIZE", help=f"The new size, such as 20G; volumes only grow; {parse.SIZE_UNITS}.")
]


@app.command("create")
def create_(
    ctx: typer.Context,
    name: NameArgument,
    pool: Annotated[str, typer.Option(help="Where.", autocompletion=complete.pools)],
    size: Annotated[str, typer.Option(metavar="SIZE", help=f"How large, such as 10G; {parse.SIZE_UNITS}.")],
    image: Annotated[
        str | None, typer.Option(help="The image whose content it starts with.", autocompletion=complete.images)
    ] = None,
    label: LabelOption = None,
    description: DescriptionOption = "",
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a volume.

    \b
    Example: serai volume create data1 --pool shared0 --size 10G
    """
    from serai.app.cli.invalid import build
    from serai.schema.volume import VolumeCreate

    spec = {"pool": pool, "size": size, "image": image}
    document = {"name": name, "spec": spec, "labels": parse.labels(label), "description": description}
    create(ctx, "volume", build(VolumeCreate, document), wait=wait, output=output)


@app.command("list")
def list_(
    ctx: typer.Context,
    pool: Annotated[str | None, typer.Option(help="Only in this pool.", autocompletion=complete.pools)] = None,
    vm: Annotated[str | None, typer.Option(help="Only of this VM.", autocompletion=complete.vms)] = None,
    limit: LimitOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List volumes.

    \b
    Example: serai volume list --vm web1
    """
    listing(ctx, "volume", output, limit=limit, query={"pool": pool, "vm": vm})


add_show(app, "volume", VolumeArgument, "Show one volume.", "serai volume show data1")


@app.command()
def resize(
    ctx: typer.Context,
    volume: VolumeArgument,
    size: SizeArgument,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Grow a volume, also while a VM uses it.

    \b
    Example: serai volume resize data1 20G
    """
    from serai.app.cli.invalid import build
    from serai.schema.volume import VolumeEdit

    body = build(VolumeEdit, {"size": size})
    act(ctx, "volume.edit", volume, body, wait=wait, output=output, done=f"resized to {size}")


add_delete(
    app,
    "volume",
    VolumeArgument,
    "Delete a volume that no VM uses.",
    "serai volume delete data1",
    "serai volume delete data1 --force",
)
