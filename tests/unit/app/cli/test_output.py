"""What others named or wrote reaches the terminal as characters to be read, in every form of output."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.support.fake_api import FakeApi
from tests.unit.app.cli.conftest import Serai

from serai.app.cli.lab import _tell_context
from serai.client import context as contexts
from serai.client.context import Context
from serai.lab.state import LabFolder, LabState, Phase
from serai.schema.text import json_safe, visible

NASTY = "a\x1b[2J\r\x9b1m\u202e\u2028\x07b\nserai: vm x is gone"
SHOWN = r"a\x1b[2J\r\x9b1m\u202e\u2028\x07b\nserai: vm x is gone"

WATCH = ["event", "watch", "--after", "0", "--count", "1"]


@pytest.fixture
def nasty(api: FakeApi) -> FakeApi:
    """A resource of each sort of text that somebody else may have written."""
    vm = api.add("vm", "web1", {"image": "tiny"}, {"state": "crashed", "reason": NASTY, "placement": NASTY})
    vm["labels"] = {NASTY: NASTY}
    vm["description"] = NASTY
    vm["status"]["conditions"] = [{"type": "warning", "message": NASTY}]
    api.emit("vm.state", "vm/web1", "", NASTY)
    return api


def harmless(text: str) -> bool:
    bad = {one for one in text if unicodedata.category(one) in ("Cc", "Zl", "Zp") or one == "\u202e"}
    return bad <= {"\n"}


def test_tables_details_and_events(nasty: FakeApi, serai: Serai) -> None:
    for argv in (["vm", "list", "-o", "wide"], ["vm", "show", "web1"], ["event", "list"], WATCH):
        ran = serai(*argv)
        assert ran.code == 0, ran.err
        assert SHOWN in ran.out, argv
        assert harmless(ran.out), argv


def test_json_and_yaml_hold_the_very_text(nasty: FakeApi, serai: Serai) -> None:
    for argv in (["vm", "show", "web1"], ["event", "list"], WATCH):
        for form in ("json", "yaml"):
            ran = serai(*argv, "-o", form)
            assert harmless(ran.out), (argv, form)
            found = json.loads(ran.out) if form == "json" else YAML(typ="safe").load(ran.out)
            assert NASTY in _texts(found), (argv, form)
    assert "שלום ü" in serai_json("שלום ü")


def serai_json(text: str) -> str:
    return json_safe(json.dumps(text, ensure_ascii=False))


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [str(value)]


def test_errors_are_one_line(api: FakeApi, serai: Serai) -> None:
    ran = serai("vm", "show", "no\x1b[2J\nserai: done")
    assert ran.code == 1
    assert harmless(ran.err)
    assert ran.err.count("\n") == 1


def test_half_a_surrogate_pair_is_shown() -> None:
    assert visible("\udc80") == r"\udc80"
    assert visible("größe 👩\u200d💻") == "größe 👩\u200d💻"


def test_a_lab_says_that_it_is_the_context_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = LabFolder(tmp_path / "small")
    monkeypatch.setattr(LabFolder, "of", lambda name: folder)
    for before, words in (("site", "serai context use site"), (None, "serai context use NAME")):
        folder.path.mkdir(exist_ok=True)
        folder.write(LabState(name="small", hosts=1, phase=Phase.UP, previous_context=before))
        contexts.put("small", Context(socket=tmp_path / "socket"))
        _tell_context("small")
        out = capsys.readouterr().out
        assert "context small is current now" in out
        assert words in out
    contexts.put("site", Context(socket=tmp_path / "socket"))
    _tell_context("small")
    assert "serai --context small" in capsys.readouterr().out
