"""Medians, spread, and a confidence interval that assumes nothing of the distribution. Results are JSON files."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import signal
import statistics
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RESAMPLES = 10_000


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, extremes and count."""
    ordered = sorted(values)
    quarters = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else [ordered[0]] * 3
    return {
        "median": round(statistics.median(ordered), 4),
        "q1": round(quarters[0], 4),
        "q3": round(quarters[2], 4),
        "min": round(ordered[0], 4),
        "max": round(ordered[-1], 4),
        "n": len(ordered),
    }


def median_difference(ours: Sequence[float], bare: Sequence[float]) -> dict[str, Any]:
    """Median of the pairwise differences, with its 95 % interval by the bootstrap (percentile; Efron 1979)."""
    pairs = [a - b for a, b in zip(ours, bare, strict=True)]
    source = random.Random(1)  # the same figures give the same interval
    medians = sorted(statistics.median(source.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975)]
    return {"median": round(statistics.median(pairs), 4), "ci95": [round(low, 4), round(high, 4)], "pairs": len(pairs)}


def machine(**more: Any) -> dict[str, Any]:
    """What it was measured on; callers add QEMU's version and the acceleration."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu,
        "kernel": platform.release(),
        "python": platform.python_version(),
        **more,
    }


def run(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Carry a measurement out. SIGTERM ends it as Ctrl-C does: what it has brought up it takes down again."""

    async def stoppable() -> dict[str, Any]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        sys.exit("ended on request; nothing was written")


def write(name: str, content: dict[str, Any]) -> Path:
    """Write one result file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
