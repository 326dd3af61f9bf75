"""GRUB's two parts are put where they look for each other, and nothing else of the disk changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.drivers.image import grub
from serai.lib.process import run
from serai.schema.errors import HostError, UnsupportedError

PARTITION = grub.FIRST_SECTOR * grub.SECTOR


async def partitioned(folder: Path) -> Path:
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(4 << 20)
    await run(
        ["sfdisk", "--quiet", str(disk)], input=b"label: dos\nlabel-id: 0x12345678\nstart=2048, type=83, bootable\n"
    )
    with disk.open("r+b") as file:
        file.seek(PARTITION)
        file.write(b"file system")
    return disk


async def test_a_disk_becomes_bootable(tmp_path: Path) -> None:
    disk = await partitioned(tmp_path)
    before = disk.read_bytes()
    await grub.install(disk, tmp_path)
    after = disk.read_bytes()
    assert after[: grub.BOOT_CODE] == (grub.MODULES / "boot.img").read_bytes()[: grub.BOOT_CODE]
    # The signature, the table and the partition are what they were.
    assert after[grub.BOOT_CODE : grub.SECTOR] == before[grub.BOOT_CODE : grub.SECTOR]
    assert after[PARTITION:] == before[PARTITION:]
    core = (tmp_path / "core.img").read_bytes()
    assert after[grub.SECTOR :].startswith(core)
    assert len(after) == len(before)


async def test_parts_that_would_not_meet_are_refused(tmp_path: Path) -> None:
    disk = await partitioned(tmp_path)
    before = disk.read_bytes()
    await grub.install(disk, tmp_path)
    boot, core = (grub.MODULES / "boot.img").read_bytes(), (tmp_path / "core.img").read_bytes()
    disk.write_bytes(before)
    for bad_boot, bad_core in (
        (boot[:0x5C] + b"\x05" + boot[0x5D:], core),
        (boot[:100], core),
        (boot, core[:500] + b"\x09" + core[501:]),
        (boot, core.ljust(PARTITION, b"\0")),
    ):
        with pytest.raises(HostError):
            grub.place(disk, bad_boot, bad_core)
    assert disk.read_bytes() == before


async def test_without_grub_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grub, "MODULES", tmp_path)
    with pytest.raises(UnsupportedError, match="grub-pc-bin"):
        await grub.install(tmp_path / "disk", tmp_path)
