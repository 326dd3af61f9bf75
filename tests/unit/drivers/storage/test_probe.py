"""What the probes say on this machine, and on one where nothing is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serai.drivers.storage.probe import probe


async def test_all_that_is_required_is_found_here(tmp_path: Path) -> None:
    found = {ability.name: ability for ability in await probe(tmp_path / "not" / "yet" / "there")}
    assert set(found) == {"iscsi-target", "iscsi-initiator", "qemu-img", "reflink"}
    assert all(ability.found for ability in found.values() if ability.required), found
    assert all(ability.remedy for ability in found.values() if not ability.found)
    assert os.listdir(tmp_path) == []


async def test_what_is_missing_comes_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = [ability for ability in await probe(tmp_path) if ability.required]
    assert len(missing) == 3
    assert not any(ability.found for ability in missing)
    assert all("apt install" in ability.remedy for ability in missing)
