"""What is wrong with a request, from Pydantic's findings: the field's path, the value, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from serai.lib.invalid import path_of, words, worst
from serai.schema.errors import InvalidError

NO_BODY = "Send an object: see /v1/openapi.json."
PLACES = ("body", "query", "path", "header")
LONGEST = 120
SECRET = ("cloud_init", "user_data")
"""Fields whose value is not repeated: errors end up in logs and terminals, and these may hold passwords."""


def explain(findings: Sequence[Any], body: Any = None) -> InvalidError:
    """The worst finding as an error; the others are counted. `body` is the request's, as it was sent."""
    first = worst(findings)
    kind, location = first["type"], tuple(first["loc"])
    if kind == "json_invalid":
        reason, _, where = str(first["ctx"]["error"]).partition(" at ")
        return InvalidError(f"the body is not JSON: {reason}", field="body", value=where, remedy="Send JSON.")
    place = location[1:] if location[:1] and location[0] in PLACES else location
    message, remedy = words(first, place or location)
    if len(findings) > 1:
        message += f" (and {len(findings) - 1} more)"
    field = path_of(place) or ("body" if location[:1] == ("body",) else "")
    hidden = kind == "missing" or field.rpartition(".")[2] in SECRET
    return InvalidError(
        message,
        field=field or None,
        value=None if hidden else shown(_as_sent(body, location, first.get("input"))),
        remedy=NO_BODY if kind == "missing" and field == "body" else remedy,
    )


def _as_sent(body: Any, location: tuple[str | int, ...], parsed: Any) -> Any:
    """What the caller wrote: `1M`, where Pydantic speaks of 1048576 because the unit was read already."""
    if not location or location[0] != "body":
        return parsed
    value = from_json(body) if isinstance(body, bytes) else body
    for part in location[1:]:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return parsed
    return value


def shown(value: Any) -> str | None:
    """A value for an error text: short, and none for whole objects."""
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
