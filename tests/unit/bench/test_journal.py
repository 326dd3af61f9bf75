"""The journal's figures: both ways are measured, with spread, and the disk is as fast as before afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import journal, stats


def test_both_ways_are_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESULTS", tmp_path / "results")
    before = os.fdatasync
    options = ["--commands", "2", "--rounds", "2", "--seconds", "0.3", "--folder", str(tmp_path)]
    assert journal.main(options) == 0
    assert os.fdatasync is before
    found = json.loads((tmp_path / "results/journal.json").read_text())
    for part in ("disk", "slow"):
        for what in ("claim_ms", "command_ms"):
            for way in ("old", "new"):
                assert 0 < found[part][what][way]["median"] <= found[part][what][way]["max"], (part, what, way)
        assert found[part]["claim_difference_ms"]["pairs"] == 2
    assert found["slow"]["claim_ms"]["new"]["min"] >= found["slow"]["extra_ms"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
