"""A program in QEMU's place: a shell script, found first, that may hand over to the real one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from serai.drivers.hypervisor.argv import BINARY


@dataclass
class Stand:
    """The script, and how it was called."""

    script: Path
    log: Path

    def calls(self) -> list[str]:
        """One line a call: its arguments."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Stand]:
    """`stand_in(text)` puts a script there; `$REAL` in it is the real QEMU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which(BINARY)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(text: str) -> Stand:
        stand = Stand(folder / BINARY, tmp_path / "calls")
        stand.script.write_text(f'#!/bin/sh\necho "$*" >>{stand.log}\nREAL={real}\n{text}\n')
        stand.script.chmod(0o755)
        return stand

    return put
