"""Contexts: kept for the user's eyes, chosen by name, environment or default."""

import stat
from pathlib import Path

import pytest

from serai.client import context as contexts
from serai.client.context import Context
from serai.schema.errors import InvalidError, NotFoundError, UnavailableError


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "deep" / "contexts.yaml"
    monkeypatch.setenv("SERAI_CONFIG", str(file))
    monkeypatch.delenv("SERAI_CONTEXT", raising=False)
    monkeypatch.setattr(contexts, "LOCAL_SOCKET", tmp_path / "local.sock")
    monkeypatch.setattr(contexts, "LOCAL_TOKEN", tmp_path / "local.token")
    return file


def test_what_is_put_comes_back_for_the_owner_only(own_file: Path, tmp_path: Path) -> None:
    lab = Context(socket=tmp_path / "s", token_file=tmp_path / "t", via={"netns": "serai-lab-probe"})
    contexts.put("lab", lab)
    assert contexts.resolve() == ("lab", lab)
    assert stat.S_IMODE(own_file.stat().st_mode) == 0o600


def test_the_name_given_goes_before_the_environment_and_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        contexts.put(name, Context(url=f"https://{name}.example"))
    monkeypatch.setenv("SERAI_CONTEXT", "b")
    assert contexts.resolve("a")[0] == "a"
    assert contexts.resolve()[0] == "b"
    monkeypatch.delenv("SERAI_CONTEXT")
    assert contexts.resolve()[0] == "c"
    contexts.use("a")
    assert contexts.resolve()[0] == "a"


def test_where_nothing_is_chosen_the_remedy_fits_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no controller runs on this machine \(context: local\)"):
        contexts.resolve("local")
    with pytest.raises(UnavailableError, match="serai context set NAME"):
        contexts.resolve()
    contexts.put("lab", Context(socket=tmp_path / "a"))
    contexts.put("far", Context(socket=tmp_path / "b"))
    contexts.remove("far")
    with pytest.raises(UnavailableError, match="use one of lab: serai context use NAME"):
        contexts.resolve()


def test_without_contexts_the_local_controller_is_used_if_it_is_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="serai up"):
        contexts.resolve()
    (tmp_path / "local.sock").touch()
    assert contexts.resolve() == ("local", Context(socket=tmp_path / "local.sock"))
    (tmp_path / "local.token").write_text("secret\n")
    assert contexts.resolve()[1].token() == "secret"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    contexts.put("lab", Context(url="http://127.0.0.1:1"))
    with pytest.raises(NotFoundError, match="Known are: lab"):
        contexts.resolve("lap")
    with pytest.raises(NotFoundError):
        contexts.use("lap")


def test_forgetting_the_current_context_leaves_none_current() -> None:
    contexts.put("a", Context(url="http://127.0.0.1:1"))
    contexts.put("b", Context(url="http://127.0.0.1:2"), use=False)
    contexts.remove("a")
    contexts.remove("never-there")
    known = contexts.load()
    assert known.current is None
    assert list(known.contexts) == ["b"]


@pytest.mark.parametrize("text", ["contexts: [", "contexts: {a: {url: 5}}", "surprise: 1", "contexts: {a: {}}"])
def test_a_broken_file_is_named(own_file: Path, text: str) -> None:
    own_file.parent.mkdir()
    own_file.write_text(text)
    with pytest.raises(InvalidError) as caught:
        contexts.load()
    assert str(own_file) in str(caught.value)


def test_a_token_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="token_file"):
        Context(url="http://127.0.0.1:1", token_file=tmp_path / "absent").token()


def test_a_file_that_is_no_text_is_named(own_file: Path) -> None:
    own_file.parent.mkdir()
    own_file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidError, match="UTF-8"):
        contexts.load()


@pytest.mark.parametrize("name", ["", " ", "a\nb"])
def test_a_context_has_a_name(own_file: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="no name"):
        contexts.put(name, Context(url="http://x"))
    assert not own_file.exists()
