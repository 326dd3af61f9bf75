"""`serai host`: physical machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from serai.app.cli import parse
from serai.app.cli.action import act, add_list, add_show, told
from serai.app.cli.options import (
    HostArgument,
    LabelOption,
    Output,
    OutputOption,
    RemoveLabelOption,
    WaitOption,
    noun,
)
from serai.app.cli.output import say
from serai.app.cli.session import run

if TYPE_CHECKING:
    from serai.client.http import Client
    from serai.schema.host import Host

app = noun("Physical machines and their uplinks.", "serai host list -o wide", "serai host show h1")
network = noun("A host's uplinks.", "serai host network take eth0", "serai host network confirm")
app.add_typer(network, name="network")

UplinkHost = Annotated[str | None, typer.Option("--host", help="Which host; may be left out where there is only one.")]


add_list(app, "host", "List hosts, with what is committed of each.", "serai host list -o wide")
add_show(app, "host", HostArgument, "Show one host: what it has, what it can do.", "serai host show h1")


@app.command()
def edit(
    ctx: typer.Context,
    host: HostArgument,
    schedulable: Annotated[
        bool | None, typer.Option("--schedulable/--no-schedulable", help="Whether VMs that start may come here.")
    ] = None,
    memory_reserve: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that is kept for the machine itself, such as 2G.")
    ] = None,
    label: LabelOption = None,
    remove_label: RemoveLabelOption = None,
    description: Annotated[str | None, typer.Option(help="A line for people.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what a host is for. VMs that run there stay; a VM that names the host still goes there.

    \b
    Examples:
      serai host edit h1 --no-schedulable
      serai host edit h2 --schedulable --memory-reserve 2G --label rack=a
    """
    changes = {"schedulable": schedulable, "memory_reserve": memory_reserve, "description": description}
    wanted = parse.labels(label) or {}

    async def change(client: Client) -> Host:
        from serai.app.cli.invalid import build
        from serai.schema.host import HostEdit

        now = await client.call("host.show", host)
        edited = build(HostEdit, {**changes, **parse.new_labels(now.labels, wanted, remove_label or [])})
        if not edited.model_fields_set:
            raise typer.BadParameter("say what to change; see: serai host edit --help")
        after: Host = await client.call("host.edit", now.id, edited)
        return after

    after = run(ctx, change)
    told("host", after, output, f"host {after.name} changed")


@app.command()
def fence(
    ctx: typer.Context,
    host: HostArgument,
    is_off: Annotated[bool, typer.Option("--is-off", help="You have seen to it that the machine is off.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who read the events.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say that a host is off for good, so that its VMs can be started elsewhere.

    Serai never takes silence for death: a host that does not answer may still run its VMs. With this you say that it
    does not. Its VMs are shown as crashed then, and start on other hosts. If the host comes back it gives up what it
    had before it gets anything to do; until then it is shown as fenced.

    \b
    Examples:
      serai host fence h3 --is-off
      serai host fence h3 --is-off --reason "power supply burnt"
    """
    from serai.schema.host import HostFence

    body = HostFence(is_off=is_off, reason=reason)
    after = run(ctx, lambda client: client.call("host.fence", host, body))
    told(
        "host",
        after,
        output,
        f"host {after.name} is fenced; start its VMs elsewhere: serai vm list --host {after.name}",
    )


@app.command()
def delete(ctx: typer.Context, host: HostArgument) -> None:
    """Forget a host that is gone for good: offline or fenced, without VMs and pools.

    An agent that starts there again joins as a new host.

    \b
    Example: serai host delete h3
    """
    run(ctx, lambda client: client.call("host.delete", host))
    say(f"host {host} deleted")


@network.command()
def take(
    ctx: typer.Context,
    uplink: Annotated[str, typer.Argument(metavar="UPLINK", help="The interface, such as eth0.")],
    host: UplinkHost = None,
    bridge: Annotated[str, typer.Option(help="The bridge's name.")] = "br-lan",
    confirm_within: Annotated[str, typer.Option(metavar="TIME", help="How long until it is undone by itself.")] = "60s",
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put a bridge on an uplink without cutting anybody off.

    The change is made as one, and undone by itself unless you confirm it in time: that you can is the proof that the
    machine is still in reach.

    \b
    Examples:
      serai host network take eth0
      serai host network confirm
    """
    from serai.app.cli.invalid import build
    from serai.schema.network import UplinkTake
    from serai.schema.units import parse_duration

    seconds = parse.value(parse_duration, confirm_within, "--confirm-within")
    body = build(UplinkTake, {"uplink": uplink, "bridge": bridge, "confirm_within": seconds})
    name = host or _only(ctx)
    done = f"has bridge {bridge} on {uplink}; keep it within {seconds:g} s: serai host network confirm --host {name}"
    act(ctx, "host.take", name, body, wait=wait, output=output, done=done)


@network.command()
def confirm(
    ctx: typer.Context, host: UplinkHost = None, wait: WaitOption = True, output: OutputOption = Output.TABLE
) -> None:
    """Keep the bridge that `take` made.

    \b
    Example: serai host network confirm
    """
    name = host or _only(ctx)
    act(ctx, "host.confirm", name, wait=wait, output=output, done="keeps its bridge")


def _only(ctx: typer.Context) -> str:
    """The name of the only host. Raises InvalidError if there are several or none."""
    from serai.schema.errors import InvalidError

    async def names(client: Client) -> list[str]:
        return [item.name async for item in client.items("host.list", limit=10)]

    have = run(ctx, names)
    if len(have) != 1:
        raise InvalidError(
            "a host must be named" if have else "there is no host",
            field="--host",
            remedy=f"Name one of {', '.join(have)}." if have else "See that a host agent runs: serai host list.",
        )
    return have[0]
