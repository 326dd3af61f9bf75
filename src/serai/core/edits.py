"""What an edit changed, and how to revert it without reverting later changes by others.

Documents are a resource's fields as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Changes = Mapping[str, Sequence[Any]]
"""Field to [what it was, what it became]: JSON, so that a job can keep it."""


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The fields that differ."""
    return {name: [before[name], after[name]] for name in before if before[name] != after[name]}


def taken_back(now: Mapping[str, Any], made: Changes) -> tuple[dict[str, Any], list[str]]:
    """(Field to what it was before, for the fields that are as the edit made them; the others of `made`: they stay)."""
    back = {name: was for name, (was, became) in made.items() if now[name] == became}
    return back, [name for name, (was, _) in made.items() if name not in back and now[name] != was]
