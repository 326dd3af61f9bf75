"""Wrong input in words: a model's complaint becomes an InvalidError with field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from serai.lib import invalid
from serai.lib.invalid import SIZES, path_of, worst

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from serai.schema.errors import InvalidError

    ModelT = TypeVar("ModelT", bound=BaseModel)

USAGE = "wrong usage"
"""The note on an error about what is no value at all, as `--memory lots`: such a command line exits with 2."""
LONGEST = 80


def build(model: type[ModelT], data: Mapping[str, Any]) -> ModelT:
    """The model of what the user gave; fields that are None count as not given. Raises InvalidError."""
    from pydantic import ValidationError

    try:
        return model.model_validate(_given(data))
    except ValidationError as error:
        refusal = describe(error, model, data)
        first = worst(error.errors())
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

    first = worst(error.errors())
    given = _at(data, first["loc"])
    message, remedy = _words(first, model, given)
    return InvalidError(
        f"{where}: {message}" if where else message,
        field=path_of(first["loc"]),
        value=given if isinstance(given, str | int | float) and len(str(given)) <= LONGEST else None,
        remedy=remedy,
    )


def _at(data: Any, loc: tuple[str | int, ...]) -> Any:
    """What the user wrote at that place; models have turned `1M` into a number by the time they complain."""
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _words(first: ErrorDetails, model: type[BaseModel], given: Any) -> tuple[str, str]:
    message, remedy = invalid.words(first, first["loc"])
    last = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return message, _instead(last, first["loc"], model)
    if first["type"].startswith("greater") and last in SIZES and re.fullmatch(r"\s*[1-9][0-9]*\s*", str(given)):
        return f"'{last}' has no unit, and {given} bytes are too few", f"Write the unit, such as {given}M."
    return message, remedy


def _instead(last: str, loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    """What to do with a field that is not where it was put: it may be another's place, or misspelt."""
    if len(loc) > 1 and last in model.model_fields:
        return f"It stands beside '{loc[0]}', not in it: move it there."
    if len(loc) == 1 and last in _fields(model, ("spec", last)):
        return "It belongs into 'spec': move it there."
    near = get_close_matches(last, _fields(model, loc), 1)
    return f"Did you mean '{near[0]}'?" if near else "Remove it."


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
