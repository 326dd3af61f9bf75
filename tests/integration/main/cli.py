"""The real `serai` program, spoken to the standing lab: its exit code, what it printed, and how it refuses.

A refusal must be one sentence that names the field, the value and what to do, with exit code 1; wrong usage exits
with 2. The program finds the lab by its context, whose file the fixture `lab_name` has put into the environment.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serai.lib import process

PROGRAM = str(Path(sys.executable).with_name("serai"))
TIMEOUT = 180.0


@dataclass(frozen=True)
class Ran:
    """One command line that is over."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed with `-o json`."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """A table's lines, in words."""
        return [line.split() for line in self.out.splitlines()]


class Serai:
    """`await serai("vm", "list")` runs one command line, without a terminal."""

    def __init__(self, lab: str) -> None:
        self.argv = [PROGRAM, "--context", lab]

    async def __call__(self, *words: str, given: str | None = None, timeout: float = TIMEOUT) -> Ran:
        """Run it to its end, whatever its code; `given` is its standard input."""
        done = await process.run(
            [*self.argv, *words], input=None if given is None else given.encode(), check=False, timeout=timeout
        )
        return Ran(done.returncode, done.text, done.stderr.decode(errors="replace"))

    async def well(self, *words: str, timeout: float = TIMEOUT) -> Ran:
        """Run it; it must exit with 0."""
        ran = await self(*words, timeout=timeout)
        assert ran.code == 0, (words, ran)
        return ran


NO_SIZE = ("is not a size", "has no unit")
"""What is no value at all is wrong usage, though it is told as other refusals are."""


def refused(ran: Ran, field: str, value: str, remedy: str) -> None:
    """One sentence on standard error, with the field, its value and what to do; nothing on standard output."""
    code = 2 if any(words in ran.err for words in NO_SIZE) else 1
    assert (ran.code, ran.out) == (code, ""), (ran.out, ran.err)
    last = ran.err.splitlines()[-1]
    assert last.startswith("serai: "), ran.err
    assert f"({field}: {value})" in last, last
    assert remedy in last.partition(f"({field}: {value})")[2], last


def misused(ran: Ran, words: str) -> None:
    """Wrong usage: exit code 2 and these words on standard error."""
    assert (ran.code, ran.out) == (2, ""), (ran.out, ran.err)
    assert words in ran.err, ran.err
