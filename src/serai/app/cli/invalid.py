"""Wrong input in words: a model's complaint becomes an InvalidError with field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from serai.schema.errors import InvalidError

    ModelT = TypeVar("ModelT", bound=BaseModel)

SIZES = ("memory", "memory_reserve", "size")
USAGE = "wrong usage"
"""The note on an error about what is no value at all, as `--memory lots`: such a command line exits with 2."""
LONGEST = 80
FINDINGS = {
    "string_type": ("this is no text", "Give text."),
    "int_type": ("this is no whole number", "Give a whole number."),
    "int_parsing": ("this is no whole number", "Give a whole number, such as 2."),
    "int_from_float": ("this is no whole number", "Give a whole number, such as 2."),
    "float_type": ("this is no number", "Give a number."),
    "float_parsing": ("this is no number", "Give a number, such as 1.5."),
    "bool_type": ("this is neither true nor false", "Give true or false."),
    "bool_parsing": ("this is neither true nor false", "Give true or false."),
    "list_type": ("this is no list", "Give a list."),
    "dict_type": ("this has no fields", "Give fields and their values."),
    "model_type": ("this has no fields", "Give fields and their values."),
    "string_too_long": ("the text is too long", "Give at most {max_length} characters."),
    "too_long": ("these are too many", "Give at most {max_length}."),
}
"""Pydantic's findings in our words, and what to do about them."""
PATTERNS = {
    "mac": "Write it like 52:54:00:12:34:56, in lower case.",
    "bridge": "Use letters, digits, '.', '_' and '-', at most 15 in all.",
    "uplink": "Use the interface's name as 'ip link' tells it, at most 15 characters.",
    "machine_type": "Write it like pc-q35-7.2, or leave it out.",
}
"""What a field must look like, by its name."""


def build(model: type[ModelT], data: Mapping[str, Any]) -> ModelT:
    """The model of what the user gave; fields that are None count as not given. Raises InvalidError."""
    from pydantic import ValidationError

    try:
        return model.model_validate(_given(data))
    except ValidationError as error:
        refusal = describe(error, model, data)
        first = worst(error)
        if first["type"] == "value_error" and first["loc"] and first["loc"][-1] in SIZES:
            refusal.add_note(USAGE)
        raise refusal from None


def _given(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _given(value) for key, value in data.items() if value is not None}
    return data


def describe(error: ValidationError, model: type[BaseModel], data: Any, where: str = "") -> InvalidError:
    """The worst complaint about `data`; `where` (a file and line) goes before the message."""
    from serai.schema.errors import InvalidError

    first = worst(error)
    given = _at(data, first["loc"])
    message, remedy = _words(first, model, given)
    return InvalidError(
        f"{where}: {message}" if where else message,
        field=path_of(first["loc"]),
        value=given if isinstance(given, str | int | float) and len(str(given)) <= LONGEST else None,
        remedy=remedy,
    )


def worst(error: ValidationError) -> ErrorDetails:
    """The complaint to show: an unknown field before a missing one, since it may be that one misspelt; missing last."""
    return min(error.errors(), key=lambda one: {"extra_forbidden": 0, "missing": 2}.get(one["type"], 1))


def _at(data: Any, loc: tuple[str | int, ...]) -> Any:
    """What the user wrote at that place; models have turned `1M` into a number by the time they complain."""
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def path_of(loc: tuple[str | int, ...]) -> str:
    """`spec.disks[0].size` from pydantic's location."""
    text = ""
    # Pydantic ends the place of a key that is wrong itself with "[key]".
    for part in loc[:-2] if loc and loc[-1] == "[key]" else loc:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _words(first: ErrorDetails, model: type[BaseModel], given: Any) -> tuple[str, str | None]:
    kind, context = first["type"], first.get("ctx", {})
    last = str(first["loc"][-1]) if first["loc"] else ""
    if kind == "extra_forbidden":
        return f"there is no field '{last}'", _instead(last, first["loc"], model)
    if kind == "missing":
        return f"'{last}' is missing", f"Give {last}."
    if kind == "string_pattern_mismatch" and "a-z0-9-" in str(context.get("pattern")):
        return "the name cannot be used", "Use lower-case letters, digits and '-' between them, at most 63 in all."
    if kind == "string_pattern_mismatch":
        return f"'{last}' cannot be that", PATTERNS.get(last, f"It must match {context.get('pattern')}.")
    if kind in ("greater_than_equal", "greater_than", "less_than_equal"):
        return _limit(kind, last, context, given)
    if kind == "enum":
        return f"'{last}' cannot be that", f"Use {context.get('expected')}."
    message, _, remedy = first["msg"].removeprefix("Value error, ").partition("; ")
    if remedy:
        return message, f"{remedy[0].upper()}{remedy[1:]}."
    wrong, known = FINDINGS.get(kind, (message, f"Correct {path_of(first['loc'])}."))
    return wrong, known.format(**context)


def _instead(last: str, loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    """What to do with a field that is not where it was put: it may be another's place, or misspelt."""
    if len(loc) > 1 and last in model.model_fields:
        return f"It stands beside '{loc[0]}', not in it: move it there."
    if len(loc) == 1 and last in _fields(model, ("spec", last)):
        return "It belongs into 'spec': move it there."
    near = get_close_matches(last, _fields(model, loc), 1)
    return f"Did you mean '{near[0]}'?" if near else "Remove it."


def _limit(kind: str, last: str, context: Mapping[str, Any], given: Any) -> tuple[str, str]:
    from serai.schema.units import format_size

    bound = context.get("ge", context.get("gt", context.get("le")))
    text = format_size(int(bound)) if last in SIZES and bound else str(bound)
    if kind == "less_than_equal":
        return f"'{last}' is too large", f"Use at most {text}."
    if last in SIZES and re.fullmatch(r"\s*[1-9][0-9]*\s*", str(given)):
        return f"'{last}' has no unit, and {given} bytes are too few", f"Write the unit, such as {given}M."
    return f"'{last}' is too small", f"Use {'more than' if kind == 'greater_than' else 'at least'} {text}."


def _fields(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The fields that the model has at the place of `loc`, as far as plain nesting goes."""
    from pydantic import BaseModel

    at: Any = model
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        field = at.model_fields.get(part)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field is not None else []
        at = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if at is None:
            return []
    return list(at.model_fields)
