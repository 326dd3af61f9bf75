"""`serai vm edit|clone|rename`: changing VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.app.cli import parse
from serai.app.cli.action import act, report, started
from serai.app.cli.options import LabelOption, Output, OutputOption, RemoveLabelOption, VmArgument, WaitOption
from serai.app.cli.output import note
from serai.app.cli.session import run
from serai.schema.text import visible

if TYPE_CHECKING:
    from serai.client.http import Client
    from serai.schema.job import Job

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
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory, such as 1G.")] = None,
    add_disk: Annotated[list[str] | None, typer.Option(metavar="DISK", help=f"Add {parse.DISK}.")] = None,
    remove_disk: Annotated[list[int] | None, typer.Option(metavar="INDEX", help="Remove a disk (0 first).")] = None,
    add_network: Annotated[list[str] | None, typer.Option(metavar="NETWORK", help=f"Add {parse.VNIC}.")] = None,
    remove_network: Annotated[list[int] | None, typer.Option(metavar="INDEX", help="Remove a VNIC (0 first).")] = None,
    label: LabelOption = None,
    remove_label: RemoveLabelOption = None,
    description: Annotated[str | None, typer.Option(help="A line for people.")] = None,
    restart: Annotated[str | None, typer.Option(metavar="always|on-failure|never")] = None,
    autostart: Annotated[bool | None, typer.Option("--autostart/--no-autostart")] = None,
    autostart_order: Annotated[int | None, typer.Option(help="Lower ones start first.")] = None,
    template: Annotated[bool | None, typer.Option("--template/--no-template", help="Only to be cloned.")] = None,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a VM. What can be done while it runs is done; the rest is shown as pending until it restarts.

    \b
    Examples:
      serai vm edit web1 --cpus 4 --memory 2G
      serai vm edit web1 --add-disk shared0:10G --label tier=web
      serai vm edit web1 --remove-network 1 --no-autostart
    """
    changes = {
        "cpus": cpus,
        "memory": memory,
        "description": description,
        "restart": restart,
        "autostart": autostart,
        "autostart_order": autostart_order,
        "template": template,
    }
    lists = {
        "disks": ([parse.disk(text) for text in add_disk or []], remove_disk or []),
        "vnics": ([parse.vnic(text) for text in add_network or []], remove_network or []),
    }
    wanted = parse.labels(label) or {}

    async def change(client: Client) -> tuple[Job, Any]:
        from serai.app.cli.invalid import build
        from serai.schema.vm import VmEdit

        now = await client.call("vm.show", vm)
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


def _lists(now: Any, lists: dict[str, tuple[list[dict[str, object]], list[int]]]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for field, (added, removed) in lists.items():
        have = [item.model_dump(mode="json", exclude_none=True) for item in getattr(now.spec, field)]
        for index in removed:
            if index >= len(have) or index < 0:
                raise typer.BadParameter(f"the VM has no {field[:-1]} {index}; it has {len(have)}")
        if added or removed:
            body[field] = [item for index, item in enumerate(have) if index not in removed] + added
    return body


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
