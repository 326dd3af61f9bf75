"""Resource documents in YAML: `{kind, name, spec, …}`, several in one file, with the line of whatever is wrong.

What `-o yaml` prints is accepted as it is: identity and status are read over, since only the spec is anybody's wish.
A document may leave out what a resource must have, if the resource is there already: what it has is taken then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from serai.app.cli.invalid import describe, worst
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
UNDER_WAY = -1
INT = "tag:yaml.org,2002:int"


class Loader(yaml.SafeLoader):
    """YAML without the numbers of base 60 (`52:54:00:12:34:56` is a MAC) and without octal ones (`010`)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the library's own name for a table per class
        first: [(tag, pattern) for tag, pattern in rules if tag != INT]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(INT, re.compile(r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))


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
    node: yaml.Node
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


def line_of(node: yaml.Node, loc: tuple[str | int, ...]) -> int:
    """The line, from 1, of the field at `loc`, or of what comes nearest to it."""
    line: int = node.start_mark.line
    for part in loc:
        found = _child(node, part)
        if found is None:
            break
        line, node = found
    return line + 1


def loc_of(field: str) -> tuple[str | int, ...]:
    """The place that `spec.vnics[1].network` names."""
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", field))


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line, node.value[part]
    return None


def _nodes(text: str, file: str) -> Iterator[tuple[yaml.Node, Any]]:
    loader = None
    try:
        loader = Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                break
            _weigh(node, file, {})
            _no_twins(node, file)
            data = loader.construct_document(node)
            if data is not None:
                yield node, data
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark is not None else file
        raise InvalidError(
            f"{place}: this is not YAML: {error.problem}",
            field="file",
            value=file,
            remedy="Look at the indentation, colons and quotes of this line and the one before it.",
        ) from error
    except yaml.YAMLError as error:
        raise InvalidError(f"{file}: this is not YAML: {error}", field="file", value=file) from error
    except RecursionError as error:
        raise _too_much(file, "it is nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


def _weigh(node: yaml.Node, file: str, known: dict[int, int]) -> int:
    """How many nodes there are once aliases are written out: ten short lines of them can make billions."""
    weight = known.get(id(node))
    if weight is None:
        known[id(node)] = UNDER_WAY
        weight = 1
        if isinstance(node, yaml.MappingNode):
            weight += sum(_weigh(key, file, known) + _weigh(value, file, known) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            weight += sum(_weigh(value, file, known) for value in node.value)
        known[id(node)] = weight
    if weight == UNDER_WAY:
        raise _too_much(f"{file}:{node.start_mark.line + 1}", "an anchor holds itself")
    if weight > NODES_MAX:
        raise _too_much(f"{file}:{node.start_mark.line + 1}", f"its aliases stand for more than {NODES_MAX} values")
    return weight


def _too_much(where: str, what: str) -> InvalidError:
    return InvalidError(f"{where}: this document is not read: {what}", field="file", remedy="Write it out, simply.")


def _no_twins(node: yaml.Node, file: str) -> None:
    """YAML's library keeps the last of two equal keys and says nothing: refuse them."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InvalidError(
                    f"{file}:{key.start_mark.line + 1}: a field's name is a word, not a list or mapping",
                    field="file",
                    value=file,
                    remedy="Correct this line.",
                )
            if key.value in seen:
                raise InvalidError(
                    f"{file}:{key.start_mark.line + 1}: '{key.value}' is given twice",
                    field=str(key.value),
                    remedy="Keep one of them.",
                )
            seen.add(key.value)
            _no_twins(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _no_twins(value, file)


def _document(node: yaml.Node, data: Any, file: str) -> Document:
    where = f"{file}:{node.start_mark.line + 1}"
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


def _read(kind: str, wish: dict[str, Any], file: str, node: yaml.Node) -> Document:
    """The document of a wish. Raises InvalidError for what is wrong whether the resource is there or not."""
    try:
        body = CREATES[kind].model_validate(wish)
    except ValidationError as error:
        line = line_of(node, worst(error)["loc"])
        refusal = describe(error, CREATES[kind], wish, f"{file}:{line}")
        if not all(one["type"] == "missing" and _of_spec(one["loc"]) for one in error.errors()):
            raise refusal from None
        return Document(kind, wish["name"], None, file, node, wish, refusal)
    return Document(kind, wish["name"], body, file, node, wish)


def _of_spec(loc: tuple[str | int, ...]) -> bool:
    """The spec itself, or a field of it: what a resource that is there has."""
    return loc[0] == "spec" and len(loc) <= 2
