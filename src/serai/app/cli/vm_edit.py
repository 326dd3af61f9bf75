"""`serai vm edit|clone|rename`: changing VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.app.cli import complete, parse
from serai.app.cli.action import act, report, started
from serai.app.cli.options import LabelOption, Output, OutputOption, RemoveLabelOption, VmArgument, WaitOption
from serai.app.cli.output import note
from serai.app.cli.session import run
from serai.schema.text import visible

if TYPE_CHECKING:
    from serai.client.http import Client
    from serai.schema.job import Job

NAMED_BY = {"disks": "volume", "vnics": "mac"}
NewName = Annotated[str, typer.Argument(metavar="NEW-NAME", help="The new name.")]


def add(app: typer.Typer) -> None:
    """Put these verbs under `vm`."""
    app.command()(edit)
    app.command()(clone)
    app.command()(rename)


def edit(
    ctx: typer.Context,
    vm: VmArgument,
    cpus: Annotated[int | None, typer.Option(help="Virtual processors.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help=f"Memory, such as 1G; {parse.SIZE_UNITS}.")] = None,
    add_disk: Annotated[
        list[str] | None,
        typer.Option(metavar="DISK", help=f"Add {parse.DISK}; repeatable.", autocompletion=complete.pools_sized),
    ] = None,
    remove_disk: Annotated[
        list[str] | None,
        typer.Option(metavar="VOLUME|INDEX", help="Remove a disk: its volume, or its place (0 first); repeatable."),
    ] = None,
    add_network: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help=f"Add {parse.VNIC}; repeatable.", autocompletion=complete.networks),
    ] = None,
    remove_network: Annotated[
        list[str] | None,
        typer.Option(metavar="MAC|INDEX", help="Remove a VNIC: its MAC, or its place (0 first); repeatable."),
    ] = None,
    label: LabelOption = None,
    remove_label: RemoveLabelOption = None,
    description: Annotated[str | None, typer.Option(help="A line for people.")] = None,
    restart: Annotated[
        str | None,
        typer.Option(
            metavar="always|on-failure|never",
            help="Start again after it ended by itself.",
            autocompletion=complete.restarts,
        ),
    ] = None,
    autostart: Annotated[
        bool | None, typer.Option("--autostart/--no-autostart", help="Start again when the host has rebooted.")
    ] = None,
    autostart_order: Annotated[int | None, typer.Option(help=parse.ORDER)] = None,
    cmdline: Annotated[
        str | None, typer.Option(help="Appended to a kernel image's command line, from the next start on.")
    ] = None,
    ssh_key: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|TEXT", help="The public keys for cloud-init, instead of those it has; repeatable."),
    ] = None,
    user_data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="cloud-init user-data, from the next start on; most of it acts at a first start only."
        ),
    ] = None,
    template: Annotated[bool | None, typer.Option("--template/--no-template", help="Only to be cloned.")] = None,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a VM. What can be done while it runs is done; the rest is shown as pending until it restarts.

    \b
    Examples:
      serai vm edit web1 --cpus 4 --memory 2G
      serai vm edit web1 --add-disk shared0:10G --label tier=web
      serai vm edit web1 --remove-disk web1-disk1 --remove-network 1 --no-autostart
    """
    changes: dict[str, Any] = {
        "cpus": cpus,
        "memory": memory,
        "description": description,
        "restart": restart,
        "autostart": autostart,
        "autostart_order": autostart_order,
        "template": template,
        "cmdline": cmdline,
    }
    seed: dict[str, Any] = {}
    if ssh_key is not None:
        seed["ssh_keys"] = [key for text in ssh_key for key in parse.ssh_key(text)]
    if user_data is not None:
        seed["user_data"] = parse.read(user_data, "--user-data")
    lists = {
        "disks": ([parse.disk(text) for text in add_disk or []], remove_disk or []),
        "vnics": ([parse.vnic(text) for text in add_network or []], remove_network or []),
    }
    wanted = parse.labels(label) or {}

    async def change(client: Client) -> tuple[Job, Any]:
        from serai.app.cli.invalid import build
        from serai.schema.vm import VmEdit

        now = await client.call("vm.show", vm)
        if seed:
            changes["cloud_init"] = {**now.spec.cloud_init.model_dump(), **seed}
        body = {**changes, **_lists(now, lists), **parse.new_labels(now.labels, wanted, remove_label or [])}
        edited = build(VmEdit, body)
        if not edited.model_fields_set:
            raise typer.BadParameter("say what to change; see: serai vm edit --help")
        job = await started(client, "vm.edit", now.id, edited, wait=wait)
        return job, await client.call("vm.show", now.id) if wait else now

    job, after = run(ctx, change)
    report(job, output, lambda _: f"vm {after.name} changed", name=vm)
    for condition in after.status.conditions if wait else []:
        note(visible(f"{condition.type}: {condition.message}"))


def _lists(now: Any, lists: dict[str, tuple[list[dict[str, object]], list[str]]]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for field, (added, removed) in lists.items():
        have = [item.model_dump(mode="json", exclude_none=True) for item in getattr(now.spec, field)]
        gone = {_place(field, have, text) for text in removed}
        if added or removed:
            body[field] = [item for index, item in enumerate(have) if index not in gone] + added
    return body


def _place(field: str, have: list[dict[str, Any]], text: str) -> int:
    """Where in the list the disk or VNIC is that is called by its name, or by its place."""
    key = NAMED_BY[field]
    names = [item.get(key) for item in have]
    if text.lower() in names:
        return names.index(text.lower())
    if text.isdecimal() and int(text) < len(have):
        return int(text)
    known = ", ".join(f"{index} ({name})" for index, name in enumerate(names)) or "none"
    raise typer.BadParameter(f"the VM has no {field[:-1]} {text}; it has: {known}")


def clone(
    ctx: typer.Context,
    vm: VmArgument,
    new_name: NewName,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Copy a stopped VM or a template: new MACs, new addresses, copies of its disks.

    \b
    Example: serai vm clone base web2
    """
    from serai.app.cli.invalid import build
    from serai.schema.vm import VmClone

    body = build(VmClone, {"name": new_name})
    act(ctx, "vm.clone", vm, body, wait=wait, output=output, done=f"cloned to {new_name}")


def rename(
    ctx: typer.Context,
    vm: VmArgument,
    new_name: NewName,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a VM another name. Its id, disks and addresses stay.

    \b
    Example: serai vm rename web1 web-old
    """
    from serai.app.cli.invalid import build
    from serai.schema.vm import VmEdit

    body = build(VmEdit, {"rename": new_name})
    act(ctx, "vm.edit", vm, body, wait=wait, output=output, done=f"is now {new_name}")
