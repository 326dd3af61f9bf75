"""Resource documents in YAML: `{kind, name, spec, …}`, several in one file, with the line of whatever is wrong.

What `-o yaml` prints is accepted as it is: identity and status are read over, since only the spec is anybody's wish.
A document may leave out what a resource must have, if the resource is there already: what it has is taken then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from serai.app.cli.invalid import describe
from serai.lib.invalid import worst
from serai.schema.errors import InvalidError
from serai.schema.image import ImageCreate
from serai.schema.network import NetworkCreate
from serai.schema.vm import VmCreate
from serai.schema.volume import PoolCreate, VolumeCreate

CREATES: dict[str, type[BaseModel]] = {
    "network": NetworkCreate,
    "pool": PoolCreate,
    "image": ImageCreate,
    "volume": VolumeCreate,
    "vm": VmCreate,
}
"""Kinds that can be applied, in the order in which they need one another."""
READ_OVER = ("kind", "id", "generation", "created", "status")
NODES_MAX = 100_000
DEPTH_MAX = 50

Node = Any
"""A document as the library reads it: mappings and lists that know the lines of what they hold."""


@dataclass(frozen=True)
class Document:
    """One wish. `body` is the model that creates the resource; only its fields that were set are wishes.

    Without a body the document lacks what a new resource needs: `refusal` says what. `filled` are fields of the spec
    that were taken from the resource that is there, and are nobody's wish.
    """

    kind: str
    name: str
    body: BaseModel | None
    file: str
    node: Node
    wish: dict[str, Any]
    refusal: InvalidError | None = None
    filled: frozenset[str] = frozenset()

    def where(self, loc: tuple[str | int, ...] = ()) -> str:
        """`file:line` of a field."""
        return f"{self.file}:{line_of(self.node, loc)}"

    def place(self, field: str | None) -> str:
        """`file:line` of the field that an answer of the API names: `spec.disks[0].size`, or `memory` of an edit."""
        loc = loc_of(field or "")
        return self.where(loc if loc[:1] == ("spec",) else max((loc, ("spec", *loc)), key=self.where))

    def whole(self, spec: dict[str, Any]) -> Document:
        """With what is left out taken from `spec`, the resource's own. Raises InvalidError."""
        if self.body is not None:
            return self
        wished = self.wish.get("spec") or {}
        filled = {key: value for key, value in spec.items() if key not in wished and value is not None}
        document = _read(self.kind, {**self.wish, "spec": {**filled, **wished}}, self.file, self.node)
        if document.refusal is not None:
            raise document.refusal
        return replace(document, filled=frozenset(filled))

    def wanted(self) -> dict[str, Any]:
        """What the document says, in the form in which resources travel."""
        if self.body is None:
            return self.wish
        said = self.body.model_dump(mode="json", exclude_unset=True)
        if self.filled:
            said["spec"] = {key: value for key, value in said["spec"].items() if key not in self.filled}
        return said


def parse(text: str, file: str) -> list[Document]:
    """All documents of a file, in its order. Raises InvalidError with file and line."""
    return [_document(node, data, file) for node, data in _nodes(text, file)]


def in_order(documents: list[Document]) -> list[Document]:
    """What others need comes first; else as written. Raises InvalidError if one thing is described twice."""
    seen: dict[tuple[str, str], Document] = {}
    for document in documents:
        twin = seen.setdefault((document.kind, document.name), document)
        if twin is not document:
            raise InvalidError(
                f"{document.where()}: {document.kind}/{document.name} is described twice",
                field="name",
                value=document.name,
                remedy=f"The first is at {twin.where()}: keep one.",
            )
    ranks = {kind: rank for rank, kind in enumerate(CREATES)}
    return sorted(documents, key=lambda document: ranks[document.kind])


def line_of(node: Node, loc: tuple[str | int, ...]) -> int:
    """The line, from 1, of the field at `loc`, or of what comes nearest to it."""
    line: int = node.lc.line if hasattr(node, "lc") else 0
    for part in loc:
        places = (node.lc.data if hasattr(node, "lc") else None) or {}
        if part not in places:
            break
        line, node = places[part][0], node[part]
    return line + 1


def loc_of(field: str) -> tuple[str | int, ...]:
    """The place that `spec.vnics[1].network` names."""
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", field))


def _nodes(text: str, file: str) -> Iterator[tuple[Node, Any]]:
    """Each document twice: with the lines of its fields, and plain."""
    reader = YAML(typ="rt", pure=True)
    reader.max_depth = DEPTH_MAX
    try:
        for node in reader.load_all(text):
            if node is not None:
                yield node, _plain(node, file)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark is not None else file
        twice = re.match(r'found duplicate key "(.*?)"', str(error.problem))
        if isinstance(error, DuplicateKeyError) and twice is not None:
            raise InvalidError(
                f"{place}: {twice[1]!r} is given twice", field="file", value=file, remedy="Keep one of them."
            ) from None
        raise InvalidError(
            # The library goes on with how to call it otherwise.
            f"{place}: this is not YAML: {str(error.problem).partition(', if necessary')[0]}",
            field="file",
            value=file,
            remedy="Look at the indentation, colons and quotes of this line and the one before it.",
        ) from None
    except YAMLError as error:
        raise InvalidError(f"{file}: this is not YAML: {error}", field="file", value=file) from error


def _plain(node: Node, file: str) -> Any:
    """Plain mappings and lists. Aliases are written out, and counted: ten short lines of them can make billions."""
    count = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > NODES_MAX or depth > DEPTH_MAX:
            raise InvalidError(
                f"{file}:{line_of(node, ())}: this document is not read: its aliases stand for too much",
                field="file",
                value=file,
                remedy="Write it out, simply.",
            )
        if isinstance(value, dict):
            return {key: copy(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [copy(inner, depth + 1) for inner in value]
        return str(value) if isinstance(value, str) else value

    return copy(node, 0)


def _document(node: Node, data: Any, file: str) -> Document:
    where = f"{file}:{line_of(node, ())}"
    if not isinstance(data, dict):
        raise InvalidError(
            f"{where}: a document must be a mapping with kind, name and spec", remedy="See: serai apply --help."
        )
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in CREATES:
        raise InvalidError(
            f"{file}:{line_of(node, ('kind',))}: " + ("'kind' is missing" if kind is None else "there is no such kind"),
            field="kind",
            value=kind,
            remedy=f"Use one of {', '.join(CREATES)}.",
        )
    return _read(kind, {key: value for key, value in data.items() if key not in READ_OVER}, file, node)


def _read(kind: str, wish: dict[str, Any], file: str, node: Node) -> Document:
    """The document of a wish. Raises InvalidError for what is wrong whether the resource is there or not."""
    try:
        body = CREATES[kind].model_validate(wish)
    except ValidationError as error:
        line = line_of(node, worst(error.errors())["loc"])
        refusal = describe(error, CREATES[kind], wish, f"{file}:{line}")
        if not all(one["type"] == "missing" and _of_spec(one["loc"]) for one in error.errors()):
            raise refusal from None
        return Document(kind, wish["name"], None, file, node, wish, refusal)
    return Document(kind, wish["name"], body, file, node, wish)


def _of_spec(loc: tuple[str | int, ...]) -> bool:
    """The spec itself, or a field of it: what a resource that is there has."""
    return loc[0] == "spec" and len(loc) <= 2
