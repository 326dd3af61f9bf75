"""What the probe says on this machine, and on one where nothing is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.drivers.image import grub, probe

NAMES = {
    "xorriso", "qemu-img", "mmdebstrap", "mke2fs", "gcc", "cpio", "modinfo", "busybox-static", "grub-pc-bin",
    "cloud-kernel",
}  # fmt: skip


async def test_all_is_found_here() -> None:
    found = await probe.probe()
    assert {ability.name for ability in found} == NAMES
    assert [ability for ability in found if not ability.found] == []
    assert all(ability.detail for ability in found)


async def test_what_is_missing_comes_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probe, "BUSYBOX", tmp_path / "busybox")
    monkeypatch.setattr(grub, "MODULES", tmp_path)
    found = await probe.probe()
    assert {ability.name for ability in found} == NAMES
    assert [ability for ability in found if ability.found] == []
    assert all(ability.remedy for ability in found)
    assert {ability.name for ability in found if ability.required} == {"xorriso", "qemu-img"}


async def test_a_busybox_with_shared_libraries_will_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BUSYBOX", Path("/bin/ls"))
    found = {ability.name: ability for ability in await probe.probe()}
    assert not found["busybox-static"].found
    assert "shared libraries" in found["busybox-static"].detail
