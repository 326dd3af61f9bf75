"""Whose a volume is."""

from __future__ import annotations

from typing import Any

from serai.controller.store import Transaction
from serai.schema.vm import Vm
from serai.schema.volume import Volume

FREE: dict[str, Any] = {"vm": None, "owner": None}
"""The status of a volume that no VM has, and that is deleted with none."""


async def free(tx: Transaction, volume: Volume, vm: Vm) -> None:
    """A volume that a VM had is nobody's."""
    await tx.volumes.update_status(volume.id, **FREE)
    text = f"{volume.name} is no disk of {vm.name} any more"
    await tx.emit("volume.state", f"volume/{volume.name}", volume.id, text)
