"""`serai vm edit|clone|rename`: changing VMs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.app.cli import parse
from serai.app.cli import vm_options as of
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
    memory: of.NewMemoryOption = None,
    add_disk: of.AddDiskOption = None,
    remove_disk: of.RemoveDiskOption = None,
    add_network: of.AddVnicOption = None,
    remove_network: of.RemoveVnicOption = None,
    label: LabelOption = None,
    remove_label: RemoveLabelOption = None,
    description: Annotated[str | None, typer.Option(help="A line for people.")] = None,
    restart: of.NewRestartOption = None,
    autostart: of.NewAutostartOption = None,
    autostart_order: Annotated[int | None, typer.Option(help=parse.ORDER)] = None,
    cmdline: of.NewCmdlineOption = None,
    ssh_key: of.NewSshKeyOption = None,
    user_data: of.NewUserDataOption = None,
    template: of.TemplateOption = None,
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
    plain = ("cpus", "memory", "description", "restart", "autostart", "autostart_order", "template", "cmdline")
    given = ctx.params
    edit_request = Edit(
        changes={name: given[name] for name in plain},
        seed=_seed(ssh_key, user_data),
        lists={
            "disks": ([parse.disk(text) for text in add_disk or []], remove_disk or []),
            "vnics": ([parse.vnic(text) for text in add_network or []], remove_network or []),
        },
        labels=parse.labels(label) or {},
        no_labels=remove_label or [],
    )
    job, after = run(ctx, lambda client: _carry_out(client, vm, edit_request, wait=wait))
    report(job, output, lambda _: f"vm {after.name} changed", name=vm)
    for condition in after.status.conditions if wait else []:
        note(visible(f"{condition.type}: {condition.message}"))


@dataclass(frozen=True)
class Edit:
    """The requested changes. `lists`: field to what is added, and what is removed by name or place."""

    changes: dict[str, Any]
    seed: dict[str, Any]
    lists: dict[str, tuple[list[dict[str, object]], list[str]]]
    labels: dict[str, str]
    no_labels: list[str]


async def _carry_out(client: Client, vm: str, edit_request: Edit, *, wait: bool) -> tuple[Job, Any]:
    from serai.app.cli.invalid import build
    from serai.schema.vm import VmEdit

    now = await client.call("vm.show", vm)
    seed = {"cloud_init": {**now.spec.cloud_init.model_dump(), **edit_request.seed}} if edit_request.seed else {}
    labels = parse.new_labels(now.labels, edit_request.labels, edit_request.no_labels)
    edited = build(VmEdit, {**edit_request.changes, **seed, **_lists(now, edit_request.lists), **labels})
    if not edited.model_fields_set:
        raise typer.BadParameter("say what to change; see: serai vm edit --help")
    job = await started(client, "vm.edit", now.id, edited, wait=wait)
    return job, await client.call("vm.show", now.id) if wait else now


def _seed(ssh_key: list[str] | None, user_data: str | None) -> dict[str, Any]:
    seed: dict[str, Any] = {}
    if ssh_key is not None:
        seed["ssh_keys"] = [key for text in ssh_key for key in parse.ssh_key(text)]
    if user_data is not None:
        seed["user_data"] = parse.read(user_data, "--user-data")
    return seed


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
    """Give a VM another name. Its id, disks and addresses stay; its volumes keep their names.

    \b
    Example: serai vm rename web1 web-old
    """
    from serai.app.cli.invalid import build
    from serai.schema.vm import VmEdit

    body = build(VmEdit, {"rename": new_name})
    act(ctx, "vm.edit", vm, body, wait=wait, output=output, done=f"is now {new_name}")
