"""What an edit changed, and what of it is taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serai.core.edits import changes, taken_back

NAMES = "abcd"
DOCUMENTS = st.fixed_dictionaries({name: st.integers(0, 3) for name in NAMES})


@given(DOCUMENTS, DOCUMENTS)
def test_what_nobody_touched_since_is_as_before(before: dict[str, int], after: dict[str, int]) -> None:
    back, stays = taken_back(after, changes(before, after))
    assert {**after, **back} == before
    assert stays == []


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_what_was_changed_since_stays_and_is_named(
    before: dict[str, int], after: dict[str, int], now: dict[str, int]
) -> None:
    back, stays = taken_back(now, changes(before, after))
    for name, value in now.items():
        touched = before[name] != after[name]
        assert {**now, **back}[name] == (before[name] if touched and value == after[name] else value)
        assert (name in stays) == (touched and value not in (before[name], after[name]))


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_taking_back_again_changes_nothing(before: dict[str, int], after: dict[str, int], now: dict[str, int]) -> None:
    made = changes(before, after)
    once = {**now, **taken_back(now, made)[0]}
    assert {**once, **taken_back(once, made)[0]} == once
