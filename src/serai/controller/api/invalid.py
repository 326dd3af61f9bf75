"""What is wrong with a request, from Pydantic's findings: the field's path, the value, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from serai.schema.errors import InvalidError

NO_BODY = "Send an object: see /v1/openapi.json."
PLACES = ("body", "query", "path", "header")
LONGEST = 120
FINDINGS = {
    "string_type": "this is no text",
    "int_type": "this is no whole number",
    "int_parsing": "this is no whole number",
    "int_from_float": "this is no whole number",
    "float_type": "this is no number",
    "float_parsing": "this is no number",
    "bool_type": "this is neither true nor false",
    "bool_parsing": "this is neither true nor false",
    "list_type": "this is no list",
    "dict_type": "this is no object",
    "model_type": "this is no object",
    "model_attributes_type": "this is no object",
    "string_too_long": "the text is too long",
    "too_long": "these are too many",
    "missing": "the field is missing",
    "extra_forbidden": "there is no such field",
    "string_pattern_mismatch": "this cannot be used here",
    "greater_than_equal": "this is too small",
    "greater_than": "this is too small",
    "less_than_equal": "this is too large",
}
"""Pydantic's findings in our words."""
PATTERNS = {
    "mac": "Write it like 52:54:00:12:34:56, in lower case.",
    "bridge": "Use letters, digits, '.', '_' and '-', at most 15 in all.",
    "uplink": "Use the interface's name as 'ip link' tells it, at most 15 characters.",
    "machine_type": "Write it like pc-q35-7.2, or leave it out.",
}
"""What a field must look like, by its name."""
KEY = "[key]"
"""How Pydantic ends the place of an object's key that is wrong itself."""
SECRET = ("cloud_init", "user_data")
"""Fields whose value is not repeated: errors end up in logs and terminals, and these may hold passwords."""
REMEDIES = {
    "missing": "Add the field.",
    "extra_forbidden": "See whether it is spelt right, or leave it out.",
    "json_invalid": "Send JSON.",
    "string_pattern_mismatch": "Names are lower-case letters, digits and hyphens, up to 63.",
    "string_type": "Send text, in quotes.",
    "bool_type": "Send true or false, without quotes.",
    "int_type": "Send a whole number, without quotes.",
    "float_type": "Send a number, without quotes.",
    "dict_type": "Send an object: {…}.",
    "model_attributes_type": "Send an object: {…}.",
    "model_type": "Send an object: {…}.",
    "list_type": "Send a list: […].",
}
BOUNDS = {
    "greater_than_equal": ("ge", "Give at least {}."),
    "greater_than": ("gt", "Give more than {}."),
    "less_than_equal": ("le", "Give at most {}."),
    "string_too_long": ("max_length", "Give at most {} characters."),
    "too_long": ("max_length", "Give at most {}."),
}
"""Kinds of findings whose context holds the bound."""


def explain(findings: Sequence[Any], body: Any = None) -> InvalidError:
    """The first finding as an error; the others are counted. `body` is the request's, as it was sent."""
    first = findings[0]
    kind, location = first["type"], tuple(first["loc"])
    message, _, advice = str(first["msg"]).removeprefix("Value error, ").partition("; ")
    if kind == "json_invalid":
        reason, _, where = str(first["ctx"]["error"]).partition(" at ")
        return InvalidError(f"the body is not JSON: {reason}", field="body", value=where, remedy=REMEDIES[kind])
    message = FINDINGS.get(kind, message)
    if len(findings) > 1:
        message += f" (and {len(findings) - 1} more)"
    field = path(location) or ("body" if location[:1] == ("body",) else "")
    return InvalidError(
        message,
        field=field or None,
        value=None
        if kind == "missing" or field.rpartition(".")[2] in SECRET
        else shown(_as_sent(body, location, first.get("input"))),
        remedy=f"{advice[0].upper()}{advice[1:]}." if advice else _remedy(kind, field, first.get("ctx", {})),
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


def path(location: Sequence[str | int]) -> str:
    """`spec.disks[0].size` from Pydantic's location."""
    parts = location[1:] if location and location[0] in PLACES else location
    if parts and parts[-1] == KEY:
        parts = parts[:-2]
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else str(part)
    return text


def shown(value: Any) -> str | None:
    """A value for an error text: short, and none for whole objects."""
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _remedy(kind: str, field: str, context: dict[str, Any]) -> str:
    last = field.rpartition(".")[2]
    if kind == "missing" and field == "body":
        return NO_BODY
    if kind == "string_pattern_mismatch" and last in PATTERNS:
        return PATTERNS[last]
    if kind in REMEDIES and (kind != "string_pattern_mismatch" or last in ("name", "rename")):
        return REMEDIES[kind]
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        return words.format(context[name])
    if "expected" in context:
        return f"Use {context['expected']}."
    return f"Correct {field}." if field else "Correct the request."
