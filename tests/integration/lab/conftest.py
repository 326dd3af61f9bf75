"""Labs of the tests' own: names that nobody else has, a folder and a context file of their own, gone at the end."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from tests.support.labworld import NOTHING, LabWorld

from serai.client.context import ENV_FILE
from serai.lab import state
from serai.lab.down import down
from serai.lib import process


def serai(*words: str) -> list[str]:
    """The argv of a command line."""
    return [sys.executable, "-m", "serai.app.cli.main", *words]


async def run(*words: str, check: bool = True, stdin: bytes | None = None) -> process.Completed:
    """Run a command line to its end."""
    return await process.run(serai(*words), check=check, input=stdin, timeout=180)


async def start_inside(name: str, node: str, argv: Sequence[str]) -> process.Child:
    """Start a program in a node, for as long as it likes."""
    return await process.spawn(serai("lab", "exec", "--name", name, node, "--", *argv))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LabWorld]:
    """See LabWorld; whatever a test leaves is taken away, and is its failure."""
    # Short: paths of Unix sockets have 107 bytes. With a space, as a folder of the user's choice may have one.
    parent = Path(tempfile.mkdtemp(prefix="sl-"))
    monkeypatch.setenv(state.ENV_PARENT, str(parent / "a b"))
    monkeypatch.setenv(ENV_FILE, str(parent / "config" / "contexts.yaml"))
    made = LabWorld(parent)
    try:
        yield made
        made.remember()
        for name in made.names:
            await down(name)
        assert made.left() == NOTHING
    finally:
        made.forget()
        shutil.rmtree(parent)
