"""Options of `serai vm`'s verbs, in words: what several of them share, and what is too long to stand in a signature."""

from __future__ import annotations

from typing import Annotated

import typer

from serai.app.cli import complete, parse

Texts = list[str] | None
AUTOSTART = "--autostart/--no-autostart"
REBOOTED = "Start again when the host has rebooted."
RESTART = "Start again after it ended by itself."
POLICIES = "always|on-failure|never"

# --- create ---

ImageOption = Annotated[str | None, typer.Option(help="What it starts from.", autocompletion=complete.images)]
MaxCpusOption = Annotated[
    int | None, typer.Option(help="How many may be plugged in while it runs; chosen when it starts unless told.")
]
MemoryOption = Annotated[str, typer.Option(metavar="SIZE", help=f"Memory, such as 768M; {parse.SIZE_UNITS}.")]
MachineOption = Annotated[
    str, typer.Option(metavar="q35|microvm", help="The kind of machine.", autocompletion=complete.machines)
]
RestartOption = Annotated[str, typer.Option(metavar=POLICIES, help=RESTART, autocompletion=complete.restarts)]
DiskOption = Annotated[
    Texts,
    typer.Option(metavar="POOL:SIZE", help=f"A disk: {parse.DISK}; repeatable.", autocompletion=complete.pools_sized),
]
VnicOption = Annotated[
    Texts,
    typer.Option(metavar="NETWORK", help=f"A VNIC: {parse.VNIC}; repeatable.", autocompletion=complete.networks),
]
SshKeyOption = Annotated[Texts, typer.Option(metavar="FILE|TEXT", help="A public key for cloud-init; repeatable.")]
UserDataOption = Annotated[str | None, typer.Option(metavar="FILE", help="cloud-init user-data.")]
StartOption = Annotated[bool, typer.Option("--start/--no-start", help="Start it at once, or only define it.")]
AutostartOption = Annotated[bool, typer.Option(AUTOSTART, help=REBOOTED)]

# --- life ---

ForceOption = Annotated[bool, typer.Option("--force", help="Do not ask the guest: pull the plug; a move is cancelled.")]
DeleteForceOption = Annotated[bool, typer.Option("--force", help="Even if it runs. A move is cancelled.")]
StopTimeoutOption = Annotated[
    str, typer.Option(metavar="TIME", help="How long the guest may take to shut down, such as 90s.")
]

# --- edit ---

NewMemoryOption = Annotated[str | None, typer.Option(metavar="SIZE", help=f"Memory, such as 1G; {parse.SIZE_UNITS}.")]
AddDiskOption = Annotated[
    Texts, typer.Option(metavar="DISK", help=f"Add {parse.DISK}; repeatable.", autocompletion=complete.pools_sized)
]
RemoveDiskOption = Annotated[
    Texts, typer.Option(metavar="VOLUME|INDEX", help="Remove a disk: its volume, or its place (0 first); repeatable.")
]
AddVnicOption = Annotated[
    Texts, typer.Option(metavar="NETWORK", help=f"Add {parse.VNIC}; repeatable.", autocompletion=complete.networks)
]
RemoveVnicOption = Annotated[
    Texts, typer.Option(metavar="MAC|INDEX", help="Remove a VNIC: its MAC, or its place (0 first); repeatable.")
]
NewRestartOption = Annotated[str | None, typer.Option(metavar=POLICIES, help=RESTART, autocompletion=complete.restarts)]
NewAutostartOption = Annotated[bool | None, typer.Option(AUTOSTART, help=REBOOTED)]
NewCmdlineOption = Annotated[
    str | None, typer.Option(help="Appended to a kernel image's command line, from the next start on.")
]
NewSshKeyOption = Annotated[
    Texts,
    typer.Option(metavar="FILE|TEXT", help="The public keys for cloud-init, instead of those it has; repeatable."),
]
NewUserDataOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="cloud-init user-data, from the next start on; most of it acts at a first start only."
    ),
]
TemplateOption = Annotated[bool | None, typer.Option("--template/--no-template", help="Only to be cloned.")]
