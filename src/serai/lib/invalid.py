"""What Pydantic finds wrong with input, in words: what is wrong with which field, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serai.schema.units import format_size

SIZES = ("memory", "memory_reserve", "size")
WHOLE = "this is no whole number"
FINDINGS = {
    "missing": ("'{field}' is missing", "Give {field}."),
    "extra_forbidden": ("there is no field '{field}'", "See whether it is spelt right, or leave it out."),
    "string_type": ("this is no text", "Give text, in quotes."),
    "int_type": (WHOLE, "Give a whole number, without quotes."),
    "int_parsing": (WHOLE, "Give a whole number, such as 2."),
    "int_from_float": (WHOLE, "Give a whole number, such as 2."),
    "float_type": ("this is no number", "Give a number, without quotes."),
    "float_parsing": ("this is no number", "Give a number, such as 1.5."),
    "bool_type": ("this is neither true nor false", "Give true or false, without quotes."),
    "bool_parsing": ("this is neither true nor false", "Give true or false."),
    "list_type": ("this is no list", "Give a list."),
    "dict_type": ("this has no fields", "Give fields and their values."),
    "model_type": ("this has no fields", "Give fields and their values."),
    "enum": ("'{field}' cannot be that", "Use {expected}."),
    "string_pattern_mismatch": ("'{field}' cannot be that", "It must match {pattern}."),
    "string_too_long": ("the text is too long", "Give at most {max_length} characters."),
    "too_long": ("these are too many", "Give at most {max_length}."),
    "greater_than_equal": ("'{field}' is too small", "Use at least {ge}."),
    "greater_than": ("'{field}' is too small", "Use more than {gt}."),
    "less_than_equal": ("'{field}' is too large", "Use at most {le}."),
}
"""Pydantic's findings in our words, and what to do about them."""
PATTERNS = {
    "mac": "Write it like 52:54:00:12:34:56, in lower case.",
    "bridge": "Use letters, digits, '.', '_' and '-', at most 15 in all.",
    "uplink": "Use the interface's name as 'ip link' tells it, at most 15 characters.",
    "machine_type": "Write it like pc-q35-7.2, or leave it out.",
}
"""What a field must look like, by its name."""
LONGEST = 120
"""Characters of a value that errors repeat."""
KEY = "[key]"
"""How Pydantic ends the place of an object's key that is wrong itself."""

Finding = Mapping[str, Any]


def worst(findings: Sequence[Any]) -> Any:
    """The one to show: an unknown field before a missing one, since it may be that one misspelt; missing last."""
    return min(findings, key=lambda one: {"extra_forbidden": 0, "missing": 2}.get(one["type"], 1))


def path_of(place: Sequence[str | int]) -> str:
    """`spec.disks[0].size` from Pydantic's location."""
    text = ""
    for part in place[:-2] if place and place[-1] == KEY else place:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def words(finding: Finding, place: Sequence[str | int]) -> tuple[str, str]:
    """Message and remedy for a finding at a place."""
    kind, context = finding["type"], dict(finding.get("ctx", {}))
    field = str(place[-1]) if place else ""
    if kind == "string_pattern_mismatch" and "a-z0-9-" in context["pattern"]:
        return "the name cannot be used", "Use lower-case letters, digits and '-' between them, at most 63 in all."
    if kind == "string_pattern_mismatch" and field in PATTERNS:
        return f"'{field}' cannot be that", PATTERNS[field]
    if field in SIZES:
        context |= {bound: format_size(context[bound]) for bound in ("ge", "gt", "le") if context.get(bound)}
    message, _, remedy = str(finding["msg"]).removeprefix("Value error, ").partition("; ")
    if remedy:
        return message, f"{remedy[0].upper()}{remedy[1:]}."
    message, remedy = FINDINGS.get(kind, (message, f"Correct {path_of(place) or 'the request'}."))
    return message.format(field=field), remedy.format(field=field, **context)


def shown(value: Any) -> str | None:
    """A value for an error text: short, and none for whole objects."""
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
