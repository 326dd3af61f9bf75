"""Whoever runs files side by side begins the longest first."""

from __future__ import annotations

import subprocess
import sys

from tests.plugins.order import LONGEST, TESTS


def test_the_longest_files_come_first() -> None:
    files = ["unit/test_order.py", "contract/test_bus.py", "integration/lab/test_bare.py", *LONGEST[2::-1]]
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", *(str(TESTS / name) for name in files)]
    listed = subprocess.run(argv, cwd=TESTS.parent, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = dict.fromkeys(line.partition("::")[0] for line in listed.splitlines() if "::" in line)
    assert list(seen) == [f"tests/{name}" for name in [*LONGEST[:3], *reversed(files[:3])]]


def test_every_name_of_the_order_is_there() -> None:
    assert [name for name in LONGEST if not (TESTS / name).exists()] == []
