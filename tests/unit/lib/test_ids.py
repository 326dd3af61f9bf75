"""Identifiers."""

import re

from serai.lib.ids import new_id, new_secret


def test_shapes() -> None:
    assert re.fullmatch("[0-9a-f]{12}", new_id())
    assert re.fullmatch("[0-9a-f]{32}", new_secret())
    assert len({new_id() for _ in range(1000)}) == 1000
