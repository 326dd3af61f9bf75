"""`python -m bench.scripts [first|demo|test …]`: how long the two commands take, against what they may.

- first: `script/demo` in a copy of this tree without what was made in it, so that the virtual environment is made too.
  Debian packages and the machine's cache of images are there already, unless the machine is new.
- demo: `script/demo`, here, a second time.
- test: `script/test`, here.

Results go to bench/results/scripts.json, each with its date, its machine and the machine's load before it began; parts
that were not asked for keep their last figures there. A script that fails is not recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.stats import RESULTS, machine, write

TOP = Path(__file__).parents[1]
MADE = (".git", ".venv", "build", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
"""What a fresh clone has none of."""


@dataclass(frozen=True)
class Part:
    """One measurement: a script, what it may take in seconds on 2 cores, and whether in a copy of its own."""

    script: str
    wanted_s: int
    fresh: bool = False


PARTS = {
    "first": Part("script/demo", 300, fresh=True),
    "demo": Part("script/demo", 90),
    "test": Part("script/test", 720),
}


def measure(part: Part, top: Path) -> dict[str, Any]:
    """Run a script of the tree at `top` to its end. Raises RuntimeError if it fails."""
    with ExitStack() as stack:
        if part.fresh:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serai-first-", dir="/var/tmp")))
            shutil.copytree(top, folder / "tree", ignore=shutil.ignore_patterns(*MADE), symlinks=True)
            top = folder / "tree"
        load = os.getloadavg()[0]
        began = time.monotonic()
        code = subprocess.run([str(top / part.script)], cwd=top, check=False).returncode
        took = time.monotonic() - began
    if code != 0:
        raise RuntimeError(f"{part.script} ended with {code} after {took:.0f} s: nothing is recorded")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(load_before=round(load, 2)),
        "script": part.script,
        "fresh_copy": part.fresh,
        "seconds": round(took, 1),
        "wanted_s": part.wanted_s,
    }


def main(argv: Sequence[str] | None = None, top: Path = TOP) -> int:
    """Measure what was asked for, all by default; each is written as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m bench.scripts", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    names = parser.parse_args(argv).parts or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]} (PART: {unknown[0]}). Known are: {', '.join(PARTS)}.")
    for name in names:
        try:
            found = measure(PARTS[name], top)
        except (RuntimeError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
        file = RESULTS / "scripts.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        path = write("scripts", before | {name: found})
        print(f"{name}: {found['seconds']} s (wanted: {found['wanted_s']} s); {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
