"""`serai vm`: create, list, show and move VMs, and their life. Changing and reaching them is in files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from serai.app.cli import complete, parse, vm_edit, vm_reach
from serai.app.cli import vm_options as of
from serai.app.cli.action import act, add_act, add_delete, add_show, create, listing
from serai.app.cli.options import (
    DescriptionOption,
    HostOption,
    LabelOption,
    LimitOption,
    NameArgument,
    Output,
    OutputOption,
    VmArgument,
    WaitOption,
    noun,
)

if TYPE_CHECKING:
    from serai.schema.job import Job
    from serai.schema.vm import VmStop

app = noun(
    "Virtual machines: create, move, change, reach them.",
    "serai vm create web1 --image tiny --memory 128M --network lan",
    "serai vm migrate web1 --to h2",
    "serai vm list -o wide",
)


@app.command("create")
def create_(
    ctx: typer.Context,
    name: NameArgument,
    image: of.ImageOption = None,
    cpus: Annotated[int, typer.Option(help="Virtual processors.")] = 1,
    max_cpus: of.MaxCpusOption = None,
    memory: of.MemoryOption = "512M",
    disk: of.DiskOption = None,
    network: of.VnicOption = None,
    ssh_key: of.SshKeyOption = None,
    user_data: of.UserDataOption = None,
    host: HostOption = None,
    machine: of.MachineOption = "q35",
    restart: of.RestartOption = "on-failure",
    start: of.StartOption = True,
    autostart: of.AutostartOption = True,
    autostart_order: Annotated[int, typer.Option(help=parse.ORDER)] = 0,
    cmdline: Annotated[str, typer.Option(help="Appended to a kernel image's command line.")] = "",
    label: LabelOption = None,
    description: DescriptionOption = "",
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a VM, and start it unless told otherwise.

    \b
    Examples:
      serai vm create t1 --image tiny --memory 128M --network lan
      serai vm create web1 --image debian --cpus 2 --memory 768M --disk shared0:4G \\
          --network lan,ip=10.77.0.120 --ssh-key ~/.ssh/id_ed25519.pub --user-data web.yaml
      serai vm create db1 --image debian --disk volume=db1-root --no-start -o json
    """
    from serai.app.cli.invalid import build
    from serai.schema.vm import VmCreate

    keys = [key for text in ssh_key or [] for key in parse.ssh_key(text)]
    seed = {"ssh_keys": keys, "user_data": parse.read(user_data, "--user-data") if user_data else ""}
    spec = {
        "image": image,
        "machine": machine,
        "cpus": cpus,
        "max_cpus": max_cpus,
        "memory": memory,
        "disks": [parse.disk(text) for text in disk or []],
        "vnics": [parse.vnic(text) for text in network or []],
        "cloud_init": seed,
        "cmdline": cmdline,
        "host": host,
        "running": start,
        "restart": restart,
        "autostart": autostart,
        "autostart_order": autostart_order,
    }
    document = {"name": name, "spec": spec, "labels": parse.labels(label), "description": description}
    create(ctx, "vm", build(VmCreate, document), wait=wait, output=output)


@app.command("list")
def list_(
    ctx: typer.Context,
    host: HostOption = None,
    state: Annotated[
        str | None,
        typer.Option(help="Only in this state: running, stopped, paused, …", autocompletion=complete.vm_states),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="KEY[=VALUE]", help="Only with this label; without =VALUE, whatever its value."),
    ] = None,
    limit: LimitOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List VMs.

    \b
    Examples:
      serai vm list --host h1
      serai vm list --label tier=web -o name
    """
    listing(ctx, "vm", output, limit=limit, query={"host": host, "state": state, "label": label})


add_show(app, "vm", VmArgument, "Show one VM: what is wanted of it, and what it is.", "serai vm show web1 -o yaml")


@app.command()
def start(
    ctx: typer.Context,
    vm: VmArgument,
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Where; none: where it was, if that will do.", autocompletion=complete.hosts),
    ] = None,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a VM.

    It starts elsewhere than before only once the host that it was on has given it up.

    \b
    Examples:
      serai vm start web1
      serai vm start web1 --host h2
    """
    from serai.app.cli.invalid import build
    from serai.schema.vm import VmStart

    body = build(VmStart, {"host": host})
    act(ctx, "vm.start", vm, body, wait=wait, output=output, done=lambda ended: f"started{_where(ended)}")


def _where(job: Job) -> str:
    """On which host a VM was started, how it was stopped before that, and why it is there."""
    result = job.result or {}
    words = [str(result[key]) for key in ("stopped", "why") if result.get(key)]
    why = f" ({'; '.join(words)})" if words else ""
    return f" on {result['host']}{why}" if result.get("host") else ""


@app.command()
def stop(
    ctx: typer.Context,
    vm: VmArgument,
    force: of.ForceOption = False,
    timeout: of.StopTimeoutOption = "60s",
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Shut a VM down: asked by ACPI first, by force after the time-out.

    \b
    Examples:
      serai vm stop web1 --timeout 2m
      serai vm stop web1 --force
    """
    body = _how_to_stop(force, timeout)

    def done(job: Job) -> str:
        return f"stopped{_by_force(job, asked=not force)}"

    act(ctx, "vm.stop", vm, body, wait=wait, output=output, done=done)


def _how_to_stop(force: bool, timeout: str) -> VmStop:
    from serai.app.cli.invalid import build
    from serai.schema.units import parse_duration
    from serai.schema.vm import VmStop

    return build(VmStop, {"force": force, "timeout": parse.value(parse_duration, timeout, "--timeout")})


@app.command()
def restart(
    ctx: typer.Context,
    vm: VmArgument,
    force: of.ForceOption = False,
    timeout: of.StopTimeoutOption = "60s",
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Shut a VM down as `vm stop` does, and start it again: what was edited and waited for that is in it then.

    \b
    Examples:
      serai vm restart web1
      serai vm restart web1 --timeout 2m
    """
    body = _how_to_stop(force, timeout)
    act(ctx, "vm.restart", vm, body, wait=wait, output=output, done=lambda ended: f"restarted{_where(ended)}")


def _by_force(job: Job, *, asked: bool) -> str:
    if "force" not in str((job.result or {}).get("reason", "")):
        return ""
    return " (by force: the guest did not shut down by itself)" if asked else " (by force)"


add_act(app, "vm.reset", VmArgument, "Reset a VM, as its reset button would.", "serai vm reset web1", "reset")
add_act(app, "vm.pause", VmArgument, "Stop a VM's processors; its memory stays.", "serai vm pause web1", "paused")
add_act(app, "vm.resume", VmArgument, "Let a paused VM go on.", "serai vm resume web1", "resumed")
add_delete(
    app,
    "vm",
    VmArgument,
    "Delete a VM and the disks that were made with it.",
    "serai vm delete web1 --force",
    force=of.DeleteForceOption,
)


@app.command()
def migrate(
    ctx: typer.Context,
    vm: VmArgument,
    to: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Where to; none: placement chooses.", autocompletion=complete.hosts),
    ] = None,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move a running VM to another host while it runs.

    \b
    Examples:
      serai vm migrate web1 --to h2 --wait
      serai vm migrate web1 -o json | jq .result.downtime_ms
    """
    from serai.app.cli.invalid import build
    from serai.schema.vm import VmMigrate

    body = build(VmMigrate, {"to": to})
    act(ctx, "vm.migrate", vm, body, wait=wait, output=output, done=lambda ended: _moved(ended, to))


def _moved(job: Job, to: str | None) -> str:
    from serai.app.cli.details import migration

    result = job.result or {}
    source, destination = result.get("source"), result.get("destination") or to
    where = (f" from {source}" if source else "") + (f" to {destination}" if destination else "")
    lines = [f"moved{where}"]
    lines += [f"  {title:<21} {text}" for title, text in migration(result)]
    return "\n".join(lines)


vm_edit.add(app)
vm_reach.add(app)
