"""What is kept free on file systems of any size."""

import pytest

from serai.lib.room import reserve

GIB = 1 << 30


@pytest.mark.parametrize(
    ("total", "kept"),
    [(0, 0), (1 << 20, (1 << 20) // 10), (5 * GIB, GIB // 2), (10 * GIB, GIB), (15 * GIB, GIB), (100 * GIB, 5 * GIB)],
)
def test_the_reserve(total: int, kept: int) -> None:
    assert reserve(total) == kept
