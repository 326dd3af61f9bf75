"""The one shape of every resource: kind, name, id, generation, spec (what is wanted), status (what is)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from serai.schema.ids import Id, Name, NewName
from serai.schema.text import one_line


class Frozen(BaseModel):
    """Base of all that travels: immutable, and strict about unknown fields so that a typing error is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


LABELS_MAX = 64
LABEL_MAX = 255
"""Characters of a label's key, and of its value."""
DESCRIPTION_MAX = 4096

LabelText = Annotated[str, StringConstraints(max_length=LABEL_MAX), AfterValidator(one_line)]
Labels = Annotated[dict[LabelText, LabelText], Field(max_length=LABELS_MAX)]
"""Labels as they are asked for; what is stored already is read whatever it holds."""
Description = Annotated[str, StringConstraints(max_length=DESCRIPTION_MAX), AfterValidator(one_line)]

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


class Create(Frozen, Generic[SpecT]):
    """The request for a new resource."""

    name: NewName
    spec: SpecT
    labels: Labels = Field(default_factory=dict)
    description: Description = ""


ItemT = TypeVar("ItemT", bound=BaseModel)


class Page(Frozen, Generic[ItemT]):
    """One page of a list. `next` is the cursor for the following page, absent on the last."""

    items: list[ItemT]
    next: str | None = None


class Condition(Frozen):
    """A remark on a resource that people should see: `pending-restart`, `warning`, …"""

    type: str
    message: str
    undo: str = ""
    """Options of the kind's `edit` verb that take back what the remark is about, where there are some."""
