"""What every command travels in. Where it goes is in subjects.py.

A request is sent with `Bus.request` on the subject of a host, or of a VM on its host. Its id makes it idempotent:
repeated (after a lost reply, a restarted agent, a restarted nats-server) it is carried out once and gets the same
reply. A command that takes longer than `HOLD` seconds is answered `running`; the sender repeats the request with the
same id until the reply is `done` or `failed`. A request whose generation is older than the newest that the receiver has
carried out for the same `key` is refused.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from serai.schema.errors import ErrorInfo
from serai.schema.ids import Id
from serai.schema.reports import Incarnation, StorePosition
from serai.schema.resource import Frozen

HOLD = 10.0
"""Seconds for which a receiver keeps a request open before it answers `running`."""


class Request(Frozen):
    """`key` is what the command's own `key` makes of the body; `job` is the job it belongs to, for logs.

    `to`: the agent that is meant; one of another incarnation does not answer. None: whoever has the host's name.
    `position`: where the sender's database stands.
    """

    id: Id
    command: str
    key: str
    generation: int = 0
    job: str | None = None
    to: Incarnation | None = None
    position: StorePosition | None = None
    body: dict[str, Any] = Field(default_factory=dict)


class Reply(Frozen):
    """`result` is the command's reply: none if it failed or still runs, or is answered with nothing."""

    state: Literal["done", "failed", "running"]
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None


class CommandProgress(Frozen):
    """On `Subjects.progress(host, request id)`: best effort, lost without harm. `fraction` 0 to 1, none if unknown.

    `waits_for`: what the host waits for, in words; "" while it works. It is repeated for as long as it is so.
    """

    request: Id
    phase: str
    fraction: float | None = None
    waits_for: str = ""
