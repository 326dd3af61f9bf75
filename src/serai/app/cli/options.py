"""Options and arguments that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from serai.app.cli import complete


class Output(StrEnum):
    """How results are printed. `name` is for scripts; `json` and `yaml` are the resource shape, unchanged."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to print the result.")]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Follow the job to its end, or only start it and print its id.")
]
AwayOption = Annotated[
    bool, typer.Option("--force", help="Even if its host is offline: that removes it when it is back, if ever.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many; all unless told.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; repeatable.")]
RemoveLabelOption = Annotated[
    list[str] | None, typer.Option("--remove-label", metavar="KEY", help="Remove a label; repeatable.")
]
DescriptionOption = Annotated[str, typer.Option(help="A line for people.")]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]
VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or id.", autocompletion=complete.vms)]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Name or id.", autocompletion=complete.hosts)]
PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="Name or id.", autocompletion=complete.pools)]
VolumeArgument = Annotated[str, typer.Argument(metavar="VOLUME", help="Name or id.", autocompletion=complete.volumes)]
ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="Name or id.", autocompletion=complete.images)]
NetworkArgument = Annotated[
    str, typer.Argument(metavar="NETWORK", help="Name or id.", autocompletion=complete.networks)
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id.", autocompletion=complete.jobs)]
HostOption = Annotated[str | None, typer.Option("--host", help="Only on this host.", autocompletion=complete.hosts)]


def noun(text: str, *examples: str) -> typer.Typer:
    """A noun's own group of verbs; `examples` are whole command lines."""
    shown = "\n".join(["\b", "Examples:", *(f"  {line}" for line in examples)])
    return typer.Typer(help=f"{text}\n\n{shown}", no_args_is_help=True, rich_markup_mode=None, add_completion=False)
