"""What is observed of pools, volumes and images, and their end; a VM's is in `vms.py`."""

from __future__ import annotations

from typing import Any

from serai.controller.store import Transaction
from serai.controller.store.resources import IdT, Resources


async def set_status(tx: Transaction, rows: Resources[Any, IdT], resource_id: IdT, **fields: Any) -> None:
    """Change fields of the status, and say in which state it is."""
    found = await rows.update_status(resource_id, **fields)
    text = f"{found.name} is {found.status.state}"
    await tx.emit(f"{rows.kind}.state", f"{rows.kind}/{found.name}", resource_id, text)


async def forget(tx: Transaction, rows: Resources[Any, IdT], resource_id: IdT) -> None:
    """It is deleted. Raises NotFoundError."""
    name = (await rows.get(resource_id)).name
    await rows.delete(resource_id)
    await tx.emit(f"{rows.kind}.deleted", f"{rows.kind}/{name}", resource_id)
