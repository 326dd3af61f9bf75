"""Names become ids on the way in, and ids become names on the way out: the one place where that happens.

Which fields refer to something is declared in the schema (`schema/ids.py`). Handlers get a body that holds references
alone, and answer with resources as they are stored. Each kind costs one query, however long the page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel
from pydantic_core import to_json

from serai.controller.api.call import page
from serai.controller.api.invalid import path
from serai.controller.store import RawPage, Store, View
from serai.controller.store.resources import Document
from serai.schema.ids import Place, Reference, places, references
from serai.schema.resource import Resource

BodyT = TypeVar("BodyT", bound=BaseModel)


async def resolved(store: Store, body: BodyT) -> BodyT:
    """The body with what its references hold. Raises NotFoundError for the first that names nothing."""
    model = type(body)
    if not places(model):
        return body
    document = body.model_dump(exclude_unset=True)
    async with store.read() as view:
        for kind, found in _by_kind(references(model, document)).items():
            known = await view.of(kind).identify({one.text for one in found})
            for one in found:
                if one.text not in known:
                    raise view.of(kind).missing(one.text, path(one.loc))
                one.put(known[one.text])
    return model.model_validate(document)


async def named(view: View, model: type[BaseModel], documents: list[Document]) -> list[Document]:
    """The documents, changed in place: names for ids. What is gone meanwhile stays an id."""
    found: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for place, kind in places(model):
        if view.of(kind).reference == "id":
            found[kind] += _holders(documents, place)
    names = await view.names({kind: {holder[key] for holder, key in holders} for kind, holders in found.items()})
    for kind, holders in found.items():
        for holder, key in holders:
            holder[key] = names[kind].get(holder[key], holder[key])
    return documents


def _holders(documents: list[Document], place: Place) -> list[tuple[Any, Any]]:
    """Of every reference at a place: the dict or list that holds it, and its key there. Fast, for a page has many."""
    level: list[Any] = documents
    for step in place[:-1]:
        level = (
            [one for item in level for one in item] if step == "*" else [item[step] for item in level if item.get(step)]
        )
    key = place[-1]
    if key == "*":
        return [(item, index) for item in level for index in range(len(item))]
    return [(item, key) for item in level if item.get(key) is not None]


async def respond(view: View, item: Resource[Any, Any], status: int = 200) -> Response:
    """Answer with one resource."""
    (document,) = await named(view, type(item), [item.model_dump(mode="json")])
    return Response(to_json(document), status, media_type="application/json")


async def respond_page(view: View, found: RawPage, model: type[BaseModel]) -> Response:
    """Answer with a page of resources."""
    return page(RawPage(await named(view, model, found.items), found.next))


async def respond_models(view: View, items: Sequence[Resource[Any, Any]], following: str | None) -> Response:
    """The same of models, for kinds whose status is partly computed."""
    documents = [item.model_dump(mode="json") for item in items]
    return page(RawPage(await named(view, type(items[0]), documents) if items else [], following))


def _by_kind(found: Iterable[Reference]) -> dict[str, list[Reference]]:
    kinds: dict[str, list[Reference]] = defaultdict(list)
    for one in found:
        kinds[one.kind].append(one)
    return kinds
