"""Files that are whole or absent."""

import os
from pathlib import Path

import pytest

from serai.lib.atomicfile import write_bytes, write_text


def test_it_writes_with_the_mode_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_text(path, "one", mode=0o640, gid=65534)
    write_bytes(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def broken(_descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
