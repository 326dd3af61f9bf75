"""Names, ids, and how one resource refers to another.

A resource is known to people by its name, which may change, and to Serai by its id, which never does. Resources refer
to one another by id: in the store, on the bus and in journals. The API and the CLI take a name or an id and show names;
`controller/api/references.py` translates, for every field that is marked with `Refers` here.

A host is the exception: its name is its identity, and a field that refers to one holds the name
(docs/adr/0006-ids-as-references.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, NewType, get_args, get_origin

from pydantic import AfterValidator, BaseModel, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, core_schema

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
NAME_MAX = 63
"""Characters of a name."""
ID_PATTERN = r"^[0-9a-f]{12}$"
_ID = re.compile(ID_PATTERN)


def is_id(text: str) -> bool:
    """Whether a text that may be a name or an id is an id: no name looks like one."""
    return _ID.fullmatch(text) is not None


def _no_id(name: str) -> str:
    if is_id(name):
        raise ValueError("a name of twelve hexadecimal digits would be taken for an id; choose another one")
    return name


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A DNS label in lower case: it becomes host names and file names as it is."""
NewName = Annotated[Name, AfterValidator(_no_id)]
"""A name that a resource is given."""
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]

VmId = NewType("VmId", Id)
VolumeId = NewType("VolumeId", Id)
PoolId = NewType("PoolId", Id)
ImageId = NewType("ImageId", Id)
NetworkId = NewType("NetworkId", Id)
HostId = NewType("HostId", Id)
JobId = NewType("JobId", Id)
HostName = NewType("HostName", NewName)


@dataclass(frozen=True)
class Refers:
    """Marks a field that refers to a resource of this kind.

    A document may hold a name in it, so the field accepts both; the controller holds the reference alone.
    """

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.str_schema(pattern=NAME_PATTERN)


VmRef = Annotated[VmId, Refers("vm")]
VolumeRef = Annotated[VolumeId, Refers("volume")]
PoolRef = Annotated[PoolId, Refers("pool")]
ImageRef = Annotated[ImageId, Refers("image")]
NetworkRef = Annotated[NetworkId, Refers("network")]
HostRef = Annotated[HostName, Refers("host")]

Place = tuple[str, ...]
"""Names of fields from the outside in; `*` is every item of a list."""
Loc = tuple[str | int, ...]


@cache
def places(model: type[BaseModel]) -> tuple[tuple[Place, str], ...]:
    """Where a model refers to other resources, and to which kind."""
    return tuple(
        ((name, *place), kind)
        for name, field in model.model_fields.items()
        for place, kind in _places_in(field.annotation, tuple(field.metadata))
    )


def _places_in(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Place, str]]:
    marks = [mark.kind for mark in metadata if isinstance(mark, Refers)]
    if marks:
        yield (), marks[0]
    elif get_origin(annotation) is Annotated:
        yield from _places_in(annotation.__origin__, annotation.__metadata__)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from places(annotation)
    else:
        prefix = ("*",) if get_origin(annotation) is list else ()
        for inner in get_args(annotation):
            yield from (((*prefix, *place), kind) for place, kind in _places_in(inner))


class Reference(NamedTuple):
    """One reference in a document: `holder[key]`, at `loc` from the outside."""

    kind: str
    loc: Loc
    holder: Any
    key: Any

    @property
    def text(self) -> str:
        """What it holds."""
        return str(self.holder[self.key])


def references(model: type[BaseModel], documents: Sequence[dict[str, Any]]) -> Iterator[Reference]:
    """Every reference in documents (plain dicts and lists) of a model."""
    for place, kind in places(model):
        found: list[tuple[Loc, Any, Any]] = [((), documents, number) for number in range(len(documents))]
        for step in place:
            outer, found = found, []
            for loc, holder, key in outer:
                value = holder[key]
                if step != "*":
                    if isinstance(value, dict) and value.get(step) is not None:
                        found.append(((*loc, step), value, step))
                elif isinstance(value, list):
                    found += [((*loc, index), value, index) for index in range(len(value))]
        yield from (Reference(kind, *one) for one in found if isinstance(one[1][one[2]], str))
