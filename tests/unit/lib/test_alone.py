"""One process on a folder of state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serai.lib.alone import alone
from serai.schema.errors import ConflictError


def test_the_second_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    lock = tmp_path / "state" / "agent.lock"
    for _ in range(2):
        with (
            alone(lock, "host agent"),
            pytest.raises(ConflictError, match=f"another host agent works on this state: process {os.getpid()}"),
            alone(lock, "host agent"),
        ):
            raise AssertionError("it was let in")
