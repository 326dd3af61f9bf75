"""The order of the files: those that take longest first.

Workers take whole files one after another (`--dist loadfile`); of what xdist would do by itself, those with the most
tests first, script/test makes no use (`--no-loadscope-reorder`): the longest files have two or three tests. Begun last,
they would keep one processor busy at the end while the other is idle.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LONGEST = (
    "integration/main/test_debian_guest.py",
    "integration/docs/test_printed.py",
    "integration/bench/test_demo.py",
    "integration/main",
    "integration",
    "contract",
)
"""Files and folders, as they are begun; what is in none of them comes last."""


def rank(file: Path) -> int:
    """A file's place in LONGEST."""
    return next((place for place, name in enumerate(LONGEST) if file.is_relative_to(TESTS / name)), len(LONGEST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort; within a file, and among equals, the order stays."""
    items.sort(key=lambda item: rank(item.path))
