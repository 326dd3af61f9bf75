"""`serai network`: networks that VMs join."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from serai.app.cli import parse
from serai.app.cli.action import add_list, add_show, told
from serai.app.cli.options import (
    DescriptionOption,
    LabelOption,
    NameArgument,
    NetworkArgument,
    Output,
    OutputOption,
    noun,
)
from serai.app.cli.output import note, say
from serai.app.cli.session import run

if TYPE_CHECKING:
    from serai.schema.network import Network

app = noun(
    "Networks that VMs join.",
    "serai network create lan --bridge br-lan --subnet 10.77.0.0/24",
    "serai network show lan",
)


@app.command("create")
def create_(
    ctx: typer.Context,
    name: NameArgument,
    bridge: Annotated[str, typer.Option(help="The bridge that each host has for it; nobody makes it for you.")],
    subnet: Annotated[str, typer.Option(metavar="CIDR", help="Its addresses, such as 10.77.0.0/24.")],
    gateway: Annotated[str | None, typer.Option(metavar="ADDRESS", help="What guests route through.")] = None,
    nameserver: Annotated[list[str] | None, typer.Option(metavar="ADDRESS", help="Repeatable.")] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="FIRST-LAST", help="Addresses that VMs may be given; all but the gateway's unless told."
        ),
    ] = None,
    mtu: Annotated[int, typer.Option(help="Largest packet, in bytes.")] = 1500,
    label: LabelOption = None,
    description: DescriptionOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a network.

    \b
    Example:
      serai network create lan --bridge br-lan --subnet 10.77.0.0/24 --range 10.77.0.100-10.77.0.199
    """
    from serai.app.cli.invalid import build
    from serai.schema.network import NetworkCreate

    first, last = _range(range_)
    spec = {
        "bridge": bridge,
        "subnet": subnet,
        "gateway": gateway,
        "nameservers": nameserver or [],
        "range_start": first,
        "range_end": last,
        "mtu": mtu,
    }
    document = {"name": name, "spec": spec, "labels": parse.labels(label), "description": description}
    body = build(NetworkCreate, document)
    made = run(ctx, lambda client: client.call("network.create", None, body))
    told("network", made, output, f"network {name} created")
    if made.status.without:
        note(_no_bridge(made))


def _no_bridge(network: Network) -> str:
    """What follows from hosts that have no bridge for a network."""
    bridge, without = network.spec.bridge, ", ".join(network.status.without)
    where = "no VM starts on this network" if not network.status.hosts else "its VMs start elsewhere"
    remedy = f"serai host network take UPLINK --host HOST --bridge {bridge}"
    return f"There is no bridge {bridge} on {without}: {where}. Make it there, for example: {remedy}."


def _range(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    first, dash, last = text.partition("-")
    if not dash:
        raise typer.BadParameter(f"{text!r} is not FIRST-LAST", param_hint="--range")
    return first, last


add_list(app, "network", "List networks.", "serai network list")
add_show(app, "network", NetworkArgument, "Show one network.", "serai network show lan")


@app.command()
def delete(ctx: typer.Context, network: NetworkArgument) -> None:
    """Delete a network that no VM uses.

    \b
    Example: serai network delete lan
    """
    run(ctx, lambda client: client.call("network.delete", network))
    say(f"network {network} deleted")
