"""The one shape of every resource: kind, name, id, generation, spec (what is wanted), status (what is)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Frozen(BaseModel):
    """Base of all that travels: immutable, and strict about unknown fields so that a typing error is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A DNS label in lower case: it becomes host names and file names as it is."""

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]

SpecT = TypeVar("SpecT", bound=Frozen)
StatusT = TypeVar("StatusT", bound=Frozen)


class Resource(Frozen, Generic[SpecT, StatusT]):
    """`generation` counts changes of `spec`; `status` says which generation it has seen where that matters."""

    kind: str
    name: Name
    id: Id
    generation: int = Field(ge=1)
    labels: dict[str, str] = Field(default_factory=dict)
    description: str = ""
    created: datetime
    spec: SpecT
    status: StatusT


ItemT = TypeVar("ItemT", bound=BaseModel)


class Page(Frozen, Generic[ItemT]):
    """One page of a list. `next` is the cursor for the following page, absent on the last."""

    items: list[ItemT]
    next: str | None = None


class Condition(Frozen):
    """A remark on a resource that people should see: `pending-restart`, `warning`, …"""

    type: str
    message: str
