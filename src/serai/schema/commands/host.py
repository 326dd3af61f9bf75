"""Commands for a host's agent itself."""

from __future__ import annotations

from serai.schema.commands.base import Command
from serai.schema.reports import Introduction
from serai.schema.resource import Frozen


class Introduce(Frozen):
    """Say all that a hello says, now."""


HOST_INTRODUCE = Command("host.introduce", Introduce, Introduction, lambda body: "host")
