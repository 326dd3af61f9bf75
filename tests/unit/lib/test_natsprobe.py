"""Whether the doctor finds a nats-server, by small programs in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.lib.natsprobe import probe


@pytest.mark.parametrize(
    ("script", "found", "words"),
    [
        ("echo 'nats-server: v2.9.10'", True, "nats-server: v2.9.10"),
        ("echo 'cannot execute' >&2; exit 2", False, "cannot execute"),
        (None, False, "not installed"),
    ],
)
async def test_by_what_the_program_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, found: bool, words: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "nats-server").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nats-server").chmod(0o755)
    (ability,) = await probe()
    assert (ability.name, ability.found) == ("nats-server", found)
    assert words in ability.detail
    assert found or "apt install nats-server" in ability.remedy
