"""Names become ids on the way in, and ids become names on the way out: the one place where that happens.

Which fields refer to something is declared in the schema (`schema/ids.py`). Handlers get a body that holds references
alone, and answer with resources as they are stored. Each kind costs one query, however long the page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel
from pydantic_core import to_json

from serai.controller.store import Store, View
from serai.controller.store.resources import Document
from serai.lib.invalid import path_of
from serai.schema.ids import Reference, places, references
from serai.schema.resource import Resource

BodyT = TypeVar("BodyT", bound=BaseModel)


async def resolved(store: Store, body: BodyT) -> BodyT:
    """The body with what its references hold. Raises NotFoundError for the first that names nothing."""
    model = type(body)
    if not places(model):
        return body
    document = body.model_dump(exclude_unset=True)
    async with store.read() as view:
        for kind, found in _by_kind(references(model, [document])).items():
            known = await view.of(kind).identify({one.text for one in found})
            for one in found:
                if one.text not in known:
                    raise view.of(kind).missing(one.text, path_of(one.loc))
                one.holder[one.key] = known[one.text]
    return model.model_validate(document)


async def named(view: View, model: type[BaseModel], documents: list[Document]) -> list[Document]:
    """The documents, changed in place: names for ids. What is gone meanwhile stays an id."""
    every = _by_kind(references(model, documents))
    found = {kind: refs for kind, refs in every.items() if view.of(kind).reference == "id"}
    names = await view.names({kind: {one.text for one in refs} for kind, refs in found.items()})
    for kind, refs in found.items():
        for one in refs:
            one.holder[one.key] = names[kind].get(one.text, one.text)
    return documents


async def respond(view: View, item: Resource[Any, Any], status: int = 200) -> Response:
    """Answer with one resource."""
    (document,) = await named(view, type(item), [item.model_dump(mode="json")])
    return Response(to_json(document), status, media_type="application/json")


def _by_kind(found: Iterable[Reference]) -> dict[str, list[Reference]]:
    kinds: dict[str, list[Reference]] = defaultdict(list)
    for one in found:
        kinds[one.kind].append(one)
    return kinds
