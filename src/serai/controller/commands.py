"""How commands are sent to hosts and VMs: what a sender says beyond the command itself. `gateway.Hosts` sends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from serai.schema.commands.base import BodyT, Command, ReplyT
from serai.schema.commands.envelope import CommandProgress
from serai.schema.ids import HostName, VmId

OnProgress = Callable[[CommandProgress], None]


@dataclass(frozen=True)
class VmTarget:
    """The agent of a VM on the host that holds its lease.

    `host` and `epoch`: the holder for which the command was made; none: whoever holds it when the command is first
    sent. A command is never sent to another holder than that.
    """

    vm: VmId
    host: HostName | None = None
    epoch: int | None = None


Target = str | VmTarget
"""A host's name; for commands that VMs answer, the VM where its lease is."""


def ignore(*_: Any) -> None:
    """No one listens."""


@dataclass(frozen=True)
class SendOptions:
    """`id`: see `envelope`. `patience` overrides the command's own.

    `waits` is told what the command waits for, in words, and "" when it waits no more; `check` is called before each
    attempt and may raise.
    """

    id: str
    generation: int = 0
    job: str | None = None
    patience: float | None = None
    on_progress: OnProgress = ignore
    waits: Callable[[str], None] = ignore
    check: Callable[[], None] = ignore


class CommandSender(Protocol):
    async def send(self, command: Command[BodyT, ReplyT], target: Target, body: BodyT, options: SendOptions) -> ReplyT:
        """Repeat the command until it is answered; returns its reply.

        Raises ConflictError once the lease of a VM target is another host's or of another epoch than at first: what the
        first one made of the command is not known. Raises SeraiError.
        """
        ...
