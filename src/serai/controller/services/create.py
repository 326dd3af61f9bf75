"""A new resource, and the event that tells of it."""

from __future__ import annotations

from typing import Any, Protocol

from serai.controller.store import Transaction
from serai.controller.store.resources import IdT, ModelT, Resources
from serai.schema.resource import Frozen


class Draft(Protocol):
    """What is said of every new resource."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def description(self) -> str: ...


async def add(
    tx: Transaction,
    rows: Resources[ModelT, IdT],
    item_id: IdT,
    draft: Draft,
    spec: Frozen,
    status: Frozen,
    message: str,
) -> ModelT:
    """Write it; its event says `message`. Raises ConflictError if the name is taken."""
    own: dict[str, Any] = {"name": draft.name, "labels": draft.labels, "description": draft.description}
    item = rows.model(kind=rows.kind, id=item_id, generation=1, created=tx.now, spec=spec, status=status, **own)
    await rows.insert(item)
    await tx.emit(f"{rows.kind}.created", f"{rows.kind}/{item.name}", item.id, message)
    return item
