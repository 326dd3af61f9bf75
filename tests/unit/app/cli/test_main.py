"""The command line as a whole: help, laziness, exit codes, completion."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.fake_api import FakeApi
from typer.main import get_command

from serai.app.cli import main as cli

Serai = Callable[..., Any]

HEAVY = {"httpx", "yaml", "rich", "pydantic", "fastapi", "websockets", "serai.schema.vm"}


def verbs() -> Iterator[list[str]]:
    """Every command line that has a help text of its own."""
    for name in cli.NOUNS:
        command: Any = get_command(importlib.import_module(f"serai.app.cli.{name}").app)
        yield from paths([name], command)


def paths(path: list[str], command: Any) -> Iterator[list[str]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from paths([*path, name], child)


@pytest.mark.parametrize("path", [pytest.param(path, id=" ".join(path)) for path in verbs()])
def test_every_verb_explains_itself(serai: Serai, path: list[str]) -> None:
    ran = serai(*path, "--help")
    assert ran.code == 0
    command = " ".join(["serai", *path])
    assert f"Usage: {command}" in ran.out
    assert "Example" in ran.out or path == ["completion"]


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from serai.app.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print('LOADED', sorted({HEAVY!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "LOADED []" in ran.stdout
    assert "Virtual machines" in ran.stdout


def test_usage_errors_exit_2(serai: Serai) -> None:
    assert serai("vm", "list", "--nope").code == 2
    assert serai("vm", "frobnicate").code == 2
    assert serai("vmm").code == 2
    assert serai("vm", "create", "a", "--disk", "x").code == 2


def test_text_that_is_not_utf8_exits_2(serai: Serai, api: FakeApi) -> None:
    """A shell can give any bytes; Python reads them as characters that cannot be sent."""
    ran = serai("vm", "show", "web\udcff")
    assert (ran.code, ran.out) == (2, "")
    assert r"not UTF-8: web\udcff" in ran.err


def test_refusals_exit_1_with_one_sentence(serai: Serai, api: FakeApi) -> None:
    ran = serai("vm", "show", "nope")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "serai: there is no such vm (vm: nope). See: serai vm list.\n"


def test_without_a_controller_the_remedy_is_said(serai: Serai) -> None:
    ran = serai("vm", "list")
    assert ran.code == 1
    assert "serai up" in ran.err


def complete(line: str) -> list[str]:
    words = line.split(" ")
    environment = {**os.environ, "_SERAI_COMPLETE": "complete_bash", "COMP_WORDS": line}
    environment["COMP_CWORD"] = str(len(words) - 1)
    command = [sys.executable, "-W", "error", "-m", "serai.app.cli.main"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr == ""
    return ran.stdout.split()


def test_words_and_names_are_completed(api: FakeApi) -> None:
    for name in ("web1", "web2", "db1"):
        api.add("vm", name, {})
    api.add("host", "h1", {})
    assert complete("serai vo") == ["volume"]
    assert complete("serai vm mi") == ["migrate"]
    assert complete("serai vm show we") == ["web1", "web2"]
    assert complete("serai vm migrate web1 --to ") == ["h1"]
    assert complete("serai context use t") == ["test"]
    assert complete("serai vm ssh debian@we") == ["debian@web1", "debian@web2"]
    api.add("network", "lan", {"bridge": "br0", "subnet": "10.0.0.0/24"})
    api.add("pool", "shared0", {"host": "h1"})
    assert complete("serai vm create x --network ") == ["lan"]
    assert complete("serai vm create x --disk s") == ["shared0:"]
    assert complete("serai vm create x --machine m") == ["microvm"]
    assert complete("serai vm list --state st") == ["starting", "stopping", "stopped"]
    assert complete("serai job list --state f") == ["failed"]


def test_without_a_controller_completion_is_silent() -> None:
    assert complete("serai vm show w") == []


def test_the_script_for_a_shell_is_printed(serai: Serai) -> None:
    assert "_SERAI_COMPLETE=complete_bash" in serai("completion", "bash").out
    assert "#compdef serai" in serai("completion", "zsh").out
