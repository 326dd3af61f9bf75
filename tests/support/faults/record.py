"""What is kept of a lab whose test failed, before it is taken away."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from serai.lab.state import LabFolder

KEPT = Path(__file__).parents[3] / "build" / "random-faults"
FILES = ("log/*", "lab.json", "ctl/**/*.db*", "ctl/**/*.sqlite*", "hosts/*/state/journal*", "hosts/**/*.log")


def keep(log: Sequence[str], lab: str, seed: int, error: BaseException) -> Path:
    """Copy logs, journals and the database; return the folder."""
    folder = LabFolder.of(lab).path
    place = KEPT / f"seed-{seed}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for pattern in FILES:
        for file in folder.glob(pattern):
            if file.is_file():
                target = place / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    place.mkdir(parents=True, exist_ok=True)
    lines = [*log, "", *traceback.format_exception(error)]
    (place / "actions.log").write_text("\n".join(lines), encoding="utf-8")
    return place
