"""What is wrong with a request, from Pydantic's findings: the field's path, the value, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from serai.lib.invalid import path_of, shown, words, worst
from serai.schema.errors import InvalidError
from serai.schema.text import unsafe

NO_BODY = "Send an object: see /v1/openapi.json."
PLACES = ("body", "query", "path", "header")
SECRET = ("cloud_init", "user_data")
"""Fields whose value is not repeated: errors end up in logs and terminals, and these may hold passwords."""
ONE_LINE = "cmdline"
"""The field where a new line would not be part of the text but end it."""


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


def refuse_unprintable(value: Any, field: str = "") -> None:
    """Raises InvalidError for text, at any depth, that no host can use: that with a null character."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{field}.{key}" if field else str(key)
            refuse_unprintable(str(key), field)
            refuse_unprintable(item, here)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            refuse_unprintable(item, f"{field}[{number}]")
    elif isinstance(value, str):
        plain = field.rpartition(".")[2] == ONE_LINE
        strange = next((one for one in value if one == "\0" or (plain and unsafe(one))), None)
        if strange is not None:
            at = value.index(strange)
            raise InvalidError(
                f"the text has a character that cannot be used: U+{ord(strange):04X} at {at}",
                field=field or "body",
                value=repr(value[max(0, at - 20) : at + 20]),
                remedy="Leave it out.",
            )
