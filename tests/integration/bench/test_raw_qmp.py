"""The bare run's disk: its CHAP password is for its own QEMU alone."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.raw_qmp import INITIATOR, TARGET, TGT_PORT, USER, Bare, Node


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    node = Node("here", (), "127.61.0.1")
    made = Bare([], {"here": node}, node, tmp_path / "bare", "")
    made.folder.mkdir()
    try:
        yield made
    finally:
        made.stop()


def opened(bare: Bare, secret: str) -> subprocess.CompletedProcess[bytes]:
    """Read from the disk with a password, as QEMU does."""
    file = bare.folder / "test-secret"
    file.write_text(secret)
    image = f"driver=iscsi,transport=tcp,portal=127.61.0.1:{TGT_PORT},target={TARGET},lun=1,initiator-name={INITIATOR}"
    image += f",user={USER},password-secret=s"
    argv = ["qemu-io", "--object", f"secret,id=s,file={file}", "-c", "read 0 512", "--image-opts", image]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False)


def test_the_password_opens_the_disk_and_is_in_no_command_line(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, argv: Any, *args: Any, **kwargs: Any) -> None:
            started.append(repr((argv, kwargs.get("env"))))
            super().__init__(argv, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    bare._target()
    assert "tgtd" in started[0]
    assert not [words for words in started if bare._secret in words]
    assert opened(bare, bare._secret).returncode == 0
    assert opened(bare, "wrong").returncode != 0


def test_the_password_file_is_its_users_alone(bare: Bare) -> None:
    before = os.umask(0)
    try:
        file = bare._secret_file(bare.folder)
    finally:
        os.umask(before)
    found = file.stat()
    assert (found.st_mode & 0o777, pwd.getpwuid(found.st_uid).pw_name) == (0o600, "serai-qemu")
    assert file.read_text() == bare._secret
