"""pytest's options of this suite: `--long`, `--soak TIME` and `--seed N`."""

from __future__ import annotations

import argparse
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serai.schema.units import parse_duration

TOP = Path(__file__).parents[2]


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("serai")
    group.addoption("--long", action="store_true", help="also the tests marked long")
    group.addoption("--soak", type=_duration, metavar="TIME", help="how long the random fault test goes on")
    group.addoption("--seed", type=int, metavar="N", help="whose actions the random fault test repeats")


def commit(top: Path = TOP) -> str | None:
    """The commit that is checked out; none where there is no git repository."""
    # As root in a folder of the user who called sudo, git would not read the repository otherwise.
    argv = ["git", "-c", f"safe.directory={top}", "-C", str(top), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def seed_of(found: str | None, today: datetime) -> int:
    """The seed of a commit, or of the day where there is none."""
    return today.date().toordinal() if found is None else int(found[:8], 16)


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist get the options as they are after this: all know the same seed.
    if config.option.seed is None:
        config.option.seed = seed_of(commit(), datetime.now(UTC))


def pytest_report_header(config: pytest.Config) -> str:
    return f"random faults: --seed {config.option.seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.long:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
