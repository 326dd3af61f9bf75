"""`serai lab`: several hosts on this one machine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.app.cli import complete, parse
from serai.app.cli.options import Output, OutputOption, noun
from serai.app.cli.output import draw, grid, note, plain, say, say_data

if TYPE_CHECKING:
    from serai.lab.state import LabFolder, LabState, ProcessRecord

app = noun(
    "Several hosts on this one machine, to try and test.",
    "serai lab up --hosts 3",
    "serai lab exec h1 -- ip address",
    "serai lab down",
)

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

NameOption = Annotated[
    str, typer.Option(help="The lab's name; several may stand side by side.", autocompletion=complete.labs)
]


@app.command()
def up(
    hosts: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    name: NameOption = "lab",
    link_rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Limit both links of each host, in both directions: 100mbit, 1gbit (kbit, mbit, gbit: 1000-based).",
        ),
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Only namespaces and links: no controller, no agents.")] = False,
) -> None:
    """Bring a lab up: hosts with two links each, a bus, a controller, an agent on each host.

    The context of the lab's name becomes the current one, so that all other commands speak to it.

    \b
    Examples:
      serai lab up --hosts 3
      serai lab up --hosts 2 --name small --link-rate 1gbit
    """
    from serai.lab.up import up as bring_up
    from serai.schema.units import parse_rate

    rate = None if link_rate is None else parse.value(parse_rate, link_rate, "--link-rate")
    _require_root()
    code = asyncio.run(_unless_ended(bring_up(name, hosts, link_rate=rate, bare=bare, say=note)))
    if code:
        note(f"interrupted: lab {name} was taken away again")
        raise typer.Exit(code)
    say(f"lab {name} is up: {hosts} host{'s' if hosts > 1 else ''}")
    if not bare:
        _tell_context(name)


@app.command()
def down(name: NameOption = "lab") -> None:
    """Take a lab away: its VMs, processes, namespaces, mounts and files. All of it goes, disks too.

    \b
    Example: serai lab down
    """
    from serai.lab.down import down as take_down

    _require_root()
    found = asyncio.run(take_down(name))
    say(f"lab {name} is gone" if found else f"there is no lab {name}")


@app.command()
def status(name: NameOption = "lab", output: OutputOption = Output.TABLE) -> None:
    """Show a lab's hosts, addresses and processes.

    \b
    Example: serai lab status -o json
    """
    from serai.lab.state import LabFolder

    _require_root()
    folder = LabFolder.of(name)
    state = folder.load()
    if output is Output.NAME:
        say(name)
    elif output in (Output.JSON, Output.YAML):
        say_data(_report(folder, state), output)
    else:
        _print(folder, state)


@app.command()
def repair(name: NameOption = "lab") -> None:
    """Start again those of a lab's programs that are gone: agents, the controller, the bus.

    \b
    Example, after kill -9 of an agent: serai lab repair
    """
    from serai.lab.repair import repair as start_again

    _require_root()
    roles = asyncio.run(start_again(name))
    for role in roles:
        say(f"{role}: started again")
    if not roles:
        say(f"nothing of lab {name} is gone")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec(  # noqa: A001 - the verb's name
    node: Annotated[
        str,
        typer.Argument(
            metavar="NODE", help="h1, h2, … or ctl, probe, net (the fabric).", autocompletion=complete.lab_nodes
        ),
    ],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to run there, with its options.")],
    name: NameOption = "lab",
) -> None:
    """Run a program inside a node of the lab: its links, and a host's own /var/lib/serai and /run/serai.

    \b
    Examples:
      serai lab exec h1 -- ip address
      serai lab exec --name small probe -- ping -c 3 10.77.0.11
    """
    from serai.lab.enter import enter

    _require_root()
    # The shell's "--", where the parser left it in.
    enter(name, node, command[1:] if command[0] == "--" else command)


@app.command()
def probe(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Who shall answer.")],
    interval: Annotated[str, typer.Option(metavar="TIME", help="Between two requests.")] = "2ms",
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="How long; Ctrl-C ends it earlier.")] = "10s",
    kind: Annotated[str, typer.Option(help="icmp, udp (an echo server on port 7), or both.")] = "both",
    name: NameOption = "lab",
    output: OutputOption = Output.TABLE,
) -> None:
    """Measure from a host of its own what a client of an address sees: replies, losses, and gaps in the replies.

    \b
    Examples:
      serai lab probe 10.77.0.100 --for 30s
      serai lab probe 10.77.0.100 --interval 1ms --for 10s -o json
    """
    from serai.lab.probe import probe_for
    from serai.lab.samples import Kind
    from serai.schema.units import parse_duration

    kinds = {"icmp": (Kind.ICMP,), "udp": (Kind.UDP,), "both": (Kind.ICMP, Kind.UDP)}
    if kind not in kinds:
        raise typer.BadParameter("icmp, udp or both", param_hint="--kind")
    seconds, every = parse.value(parse_duration, for_), parse.value(parse_duration, interval)
    _require_root()
    report = asyncio.run(probe_for(name, address, seconds, interval=every, kinds=kinds[kind]))
    if output in (Output.JSON, Output.YAML):
        say_data(plain(report), output)
    else:
        for line in report.lines():
            say(line)


def _tell_context(name: str) -> None:
    """Say that all commands speak to the lab now, and how to speak to what they spoke to before."""
    from serai.client import context as contexts
    from serai.lab.state import LabFolder

    before = LabFolder.of(name).load().previous_context
    now = contexts.load().current
    if now != name:
        say(f"to speak to it: serai --context {name} COMMAND")
        return
    others = before is not None and before != name
    back = f"back to {before}: serai context use {before}" if others else "to another one: serai context use NAME"
    say(f"context {name} is current now: all commands speak to this lab ({back})")


async def _unless_ended(work: Coroutine[Any, Any, object]) -> int:
    """Do `work`, and let it undo itself at Ctrl-C, at SIGTERM, or when the terminal closes; return the exit code."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    came: list[int] = []

    def end(number: int) -> None:
        # Only once: another one would cut the undoing short.
        if not came:
            came.append(number)
            task.cancel()

    # One that is ignored stays so: the caller meant it (nohup, a job in a script's background).
    heard = [number for number in ENDINGS if signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        loop.add_signal_handler(number, end, number)
    try:
        await task
    except asyncio.CancelledError:
        if not came:
            raise
        return 128 + came[0]
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
    return 0


def _require_root() -> None:
    import os

    from serai.schema.errors import UnsupportedError

    if os.geteuid() != 0:
        raise UnsupportedError("a lab needs root: it makes namespaces and links", remedy="Run it again with sudo.")


def _report(folder: LabFolder, state: LabState) -> dict[str, object]:
    plan = state.plan
    return {
        "name": state.name,
        "folder": str(folder.path),
        "bare": state.bare,
        "link_rate": state.link_rate,
        "hosts": {host: {"lan": str(plan.address(host)), "san": str(plan.address(host, "san"))} for host in plan.hosts},
        "processes": [{"role": record.role, "pid": record.pid, "alive": record.alive} for record in state.processes],
    }


def _print(folder: LabFolder, state: LabState) -> None:
    from serai.schema.units import format_rate

    rate = f", links of {format_rate(state.link_rate)}" if state.link_rate else ""
    say(f"lab {state.name} in {folder.path}{' (bare)' if state.bare else ''}{rate}")
    table = grid("NODE", "LAN", "SAN", "PROCESS", "PID", "STATE")
    plan = state.plan
    for node in plan.nodes[1:]:
        own: list[ProcessRecord | None] = [
            record for record in state.processes if record.role.partition(" ")[2] == node
        ]
        addresses = [
            next((wire.address.partition("/")[0] for wire in plan.wires if (wire.node, wire.segment) == (node, on)), "")
            for on in ("lan", "san")
        ]
        for record in own or [None]:
            program = ("", "", "")
            if record is not None:
                program = (record.role.partition(" ")[0], str(record.pid), "running" if record.alive else "gone")
            table.add_row(node, *addresses, *program)
    draw(table)
