"""Commands that put a bridge on a host's uplink. One at a time on a host: all have the same key."""

from __future__ import annotations

from datetime import datetime
from types import NoneType

from serai.schema.commands.base import Command
from serai.schema.resource import Frozen


class TakeUplink(Frozen):
    """Put `bridge` on `uplink`; undone after `confirm_within` seconds unless confirmed."""

    uplink: str
    bridge: str
    confirm_within: float


class UplinkTaken(Frozen):
    token: str
    deadline: datetime


class ConfirmUplink(Frozen):
    """Keep what was taken. An empty token means the newest."""

    token: str


UPLINK_TAKE = Command("uplink.take", TakeUplink, UplinkTaken, lambda body: "uplink")
UPLINK_CONFIRM = Command("uplink.confirm", ConfirmUplink, NoneType, lambda body: "uplink")
