"""What a command is: its name, what it takes and gives, what orders it, and who answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter

from serai.schema.resource import Frozen

BodyT = TypeVar("BodyT", bound=Frozen)
ReplyT = TypeVar("ReplyT", bound=Frozen | None)


@dataclass(frozen=True)
class Command(Generic[BodyT, ReplyT]):
    """`key` names what the commands of one body are ordered by: `vm/<id>`, `volume/<id>`, …

    `reply` is NoneType for a command that is answered with nothing. `to`: the subject it is sent on, the host's own or
    that of a VM on the host that holds its lease. `patience`: seconds of silence after which a sender gives up, unless
    it says otherwise.
    """

    name: str
    body: type[BodyT]
    reply: type[ReplyT]
    key: Callable[[BodyT], str]
    to: Literal["host", "vm"] = "host"
    patience: float = 60.0

    def __str__(self) -> str:
        return self.name

    def read_reply(self, result: object) -> ReplyT:
        """The reply in what came over the bus. Raises ValidationError."""
        return TypeAdapter(self.reply).validate_python(result)


AnyCommand = Command[Any, Any]
