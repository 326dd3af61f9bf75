"""What documents name besides themselves: a VM's image, pools, volumes and networks, a pool's host.

Each must be there already, or be made by one of the documents: this is asked before the first change, since half a site
is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serai.app.cli.documents import Document
from serai.schema.errors import NotFoundError, from_info

if TYPE_CHECKING:
    from serai.app.cli.changes import Change
    from serai.client.http import Client

PLACES: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "network": (),
    "pool": ((("spec", "host"), "host"),),
    "image": ((("host",), "host"),),
    "volume": ((("spec", "pool"), "pool"), (("spec", "image"), "image")),
    "vm": (
        (("spec", "image"), "image"),
        (("spec", "host"), "host"),
        (("spec", "disks", "*", "pool"), "pool"),
        (("spec", "disks", "*", "volume"), "volume"),
        (("spec", "vnics", "*", "network"), "network"),
    ),
}
"""Where each kind names another resource, and of which kind that is; `*` is every item of a list."""


@dataclass(frozen=True)
class Reference:
    """`loc` is the field of the document that names `kind`/`name`."""

    loc: tuple[str | int, ...]
    kind: str
    name: str


def references(document: Document) -> list[Reference]:
    """All that a document names."""
    wanted = document.wanted()
    return [
        Reference(loc, kind, name)
        for place, kind in PLACES[document.kind]
        for loc, name in _at(wanted, place, ())
        if isinstance(name, str)
    ]


def _at(value: Any, place: tuple[str, ...], loc: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if not place:
        yield loc, value
    elif place[0] == "*":
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from _at(item, place[1:], (*loc, index))
    elif isinstance(value, dict) and place[0] in value:
        yield from _at(value[place[0]], place[1:], (*loc, place[0]))


async def check(client: Client, changes: list[Change]) -> None:
    """Ask for all that the changes need and do not make themselves. Raises NotFoundError with file, line and field."""
    from serai.lib.invalid import path_of

    there = {(change.document.kind, change.document.name) for change in changes}
    for change in changes:
        for one in references(change.document) if change.calls else ():
            if (one.kind, one.name) in there:
                continue
            try:
                await client.call(f"{one.kind}.show", one.name)
            except NotFoundError as error:
                told = {"message": f"{change.document.where(one.loc)}: {error.info.message}", "field": path_of(one.loc)}
                raise from_info(error.info.model_copy(update=told)) from None
            there.add((one.kind, one.name))
