"""The suite's options: what is marked long, and whose seed it is unless told."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.plugins.options import commit, seed_of

TODAY = datetime(2025, 11, 28, tzinfo=UTC)
LONG = """
import pytest

@pytest.mark.long
def test_long(pytestconfig):
    print("seed", pytestconfig.option.seed, "soak", pytestconfig.option.soak)

def test_short():
    pass
"""


def pytest_in(folder: Path, *words: str) -> str:
    (folder / "test_both.py").write_text(LONG)
    argv = [sys.executable, "-m", "pytest", "-p", "tests.plugins.options", "-s", str(folder), *words]
    done = subprocess.run(argv, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_long_tests_run_only_when_asked_for(tmp_path: Path) -> None:
    assert "1 passed, 1 deselected" in pytest_in(tmp_path)
    assert "2 passed" in pytest_in(tmp_path, "--long")


def test_what_is_given_reaches_the_tests_and_their_workers(tmp_path: Path) -> None:
    said = pytest_in(tmp_path, "--long", "--seed", "5", "--soak", "60m")
    assert "random faults: --seed 5" in said
    assert "seed 5 soak 3600.0" in said
    assert "is not a duration" in pytest_in(tmp_path, "--soak", "long")


def test_each_commit_has_its_seed(tmp_path: Path) -> None:
    assert seed_of("00000010ffff", TODAY) == 16
    assert seed_of(None, TODAY) == TODAY.date().toordinal()
    assert commit(tmp_path) is None


@pytest.mark.parametrize("made", [1, 2])
def test_the_commit_is_the_one_that_is_checked_out(tmp_path: Path, made: int) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for number in range(made):
        words = [*who, "-C", str(tmp_path), "commit", "-q", "--allow-empty", "-m", str(number)]
        subprocess.run(["git", *words], check=True)
    shown = subprocess.run(
        ["git", "-C", str(tmp_path), "log", "-1", "--format=%H"], capture_output=True, text=True, check=True
    )
    assert commit(tmp_path) == shown.stdout.strip()
