"""script/test's own arguments: which checks run, and what pytest is given. All that it calls writes itself down."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
CHECKS = ["setup", "ruff format --check -q src tests bench", "ruff check -q src tests bench", "mypy src tests bench"]
CHECKS += ["lint-imports"]
PROGRAM = """\
#!/bin/sh
line=${{0##*/}}
for word; do
    case $word in *" "*) word="[$word]" ;; esac
    line="$line $word"
done
printf '%s\\n' "$line" >>"{top}/ran"
[ ! -e "{top}/fails-${{0##*/}}" ]
"""
ALL = "-n 3 --dist loadfile --no-loadscope-reorder"


@dataclass
class Tree:
    """A tree with the script in it."""

    top: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(self.top / "script/test"), *words]
        return subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=60, check=False)

    def ran(self, *words: str) -> list[str]:
        """What it called, in order; an argument with a blank in it is in brackets."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return (self.top / "ran").read_text().splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "script").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(TOP / "script/test", tmp_path / "script")
    for place in ("script/setup", *(f".venv/bin/{name}" for name in ("ruff", "mypy", "lint-imports", "pytest"))):
        program = tmp_path / place
        program.write_text(PROGRAM.format(top=tmp_path))
        program.chmod(0o755)
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ((), ALL),
        (("--seed", "7"), f"--seed 7 {ALL}"),
        (("--long",), f"--long {ALL}"),
        (("--long", "--seed=7"), f"--seed 7 --long {ALL}"),
        (("--seed", "7", "--long"), f"--seed 7 --long {ALL}"),
        (("--fast",), "-n 2 --dist loadfile tests/unit"),
        (("--fast", "-k", "a lease"), "-n 2 --dist loadfile tests/unit -k [a lease]"),
    ],
)
def test_modes_with_checks(tree: Tree, words: tuple[str, ...], given: str) -> None:
    assert tree.ran(*words) == [*CHECKS, f"pytest {given}"]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("tests/unit", "-k", "lease"), "tests/unit -k lease"),
        (("tests/unit", "-k", "a --fast"), "tests/unit -k [a --fast]"),
        (("-x", "--fast"), "-x --fast"),
        (("--long", "tests/contract"), "--long tests/contract"),
        (("--soak", "60m"), "-s tests/integration/faults --soak 60m"),
        (("--soak=90s", "--seed", "12", "-x"), "--seed 12 -s tests/integration/faults --soak 90s -x"),
    ],
)
def test_modes_without_checks(tree: Tree, words: tuple[str, ...], given: str) -> None:
    assert tree.ran(*words) == ["setup", f"pytest {given}"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--fast", "--long"), "--long cannot be combined with --fast"),
        (("--soak", "1m", "--fast"), "--fast cannot be combined with --soak"),
        (("--soak",), "--soak needs a value"),
        (("--soak=",), "--soak needs a value"),
        (("--seed",), "--seed needs a value"),
        (("--seed", "x"), "--seed x is not a number"),
        (("--fast", "--seed", "1"), "--fast leaves out"),
    ],
)
def test_wrong_usage(tree: Tree, words: tuple[str, ...], why: str) -> None:
    done = tree.run(*words)
    assert done.returncode == 2
    assert why in done.stderr
    assert "usage: script/test" in done.stderr
    assert not (tree.top / "ran").exists()


def test_help(tree: Tree) -> None:
    done = tree.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--soak 60m" in done.stdout
    assert not (tree.top / "ran").exists()


@pytest.mark.parametrize("check", ["setup", "ruff", "mypy", "lint-imports"])
def test_a_check_that_fails_ends_it(tree: Tree, check: str) -> None:
    (tree.top / f"fails-{check}").touch()
    assert tree.run("--fast").returncode == 1
    assert (tree.top / "ran").read_text().splitlines()[-1].partition(" ")[0] == check


def test_its_end_is_pytests(tree: Tree) -> None:
    (tree.top / "fails-pytest").touch()
    assert tree.run("tests/unit").returncode == 1
