"""How long the scripts take is written down with where and when; a script that fails is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import scripts, stats


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with two scripts: the demo's says where it was run, the test's fails."""
    made = tmp_path / "tree"
    (made / "script").mkdir(parents=True)
    for name, lines in (("demo", f"(pwd; ls -A | tr '\\n' ' '; echo) >>{tmp_path}/ran"), ("test", "exit 3")):
        script = made / "script" / name
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
    (made / ".venv").mkdir()
    for module in (stats, scripts):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return made


def test_each_part_is_recorded_and_the_others_stay(top: Path) -> None:
    for part in ("demo", "first"):
        assert scripts.main([part], top) == 0
    found = json.loads((top.parent / "results/scripts.json").read_text())
    assert set(found) == {"demo", "first"}
    assert {key: type(value) for key, value in found["first"].items()} == {
        "date": str, "machine": dict, "script": str, "fresh_copy": bool, "seconds": float, "wanted_s": int
    }  # fmt: skip
    here, had, copy, had_there = (top.parent / "ran").read_text().splitlines()
    assert (here, had.split()) == (str(top), [".venv", "script"])
    assert had_there.split() == ["script"]
    assert not Path(copy).exists()


def test_a_script_that_fails_is_not_recorded(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scripts.main(["test", "demo"], top) == 1
    assert "script/test ended with 3" in capsys.readouterr().err
    assert not (top.parent / "results").exists()


def test_a_part_that_there_is_not(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scripts.main(["lunch"], top)
    assert "PART: lunch" in capsys.readouterr().err
