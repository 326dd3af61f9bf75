"""A fake API as the current context, and `serai` as a function."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_api import FakeApi

from serai.app.cli.main import main
from serai.client import context as contexts
from serai.client.context import Context


@dataclass(frozen=True)
class Ran:
    """One command line that is over."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Serai = Callable[..., Ran]


@pytest.fixture(autouse=True)
def own_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Never the user's own file."""
    file = tmp_path / "config" / "contexts.yaml"
    monkeypatch.setenv("SERAI_CONFIG", str(file))
    monkeypatch.delenv("SERAI_CONTEXT", raising=False)
    monkeypatch.setattr(contexts, "LOCAL_SOCKET", tmp_path / "local.sock")
    monkeypatch.setenv("COLUMNS", "120")
    return file


@pytest.fixture
def api(tmp_path: Path, own_contexts: Path) -> Iterator[FakeApi]:
    with FakeApi(tmp_path / "api.sock") as served:
        contexts.put("test", Context(socket=served.socket))
        yield served


@pytest.fixture
def serai(capsys: pytest.CaptureFixture[str]) -> Serai:
    def run(*argv: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(argv))
        code = caught.value.code
        captured = capsys.readouterr()
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
