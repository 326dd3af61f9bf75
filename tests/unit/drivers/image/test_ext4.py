"""An ext4 file system out of a tree: two of them are the same bytes, whenever their trees were made."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from serai.drivers.image import ext4
from serai.lib.process import run
from serai.schema.errors import HostError

OFFSET = 1 << 20
SIZE = 32 << 20
IDENTITY = uuid.UUID("b9d1b0a2-6d51-4b58-9d9e-2d7d2f3a4c11")
OLD = ext4.EPOCH - 1000
DESCRIBED = """Inode count:              100
 Group 0: (Blocks 0-1)
  Free inodes: 14-20, 22
 Group 1: (Blocks 2-3)
  Free inodes: 23-100
 Group 2: (Blocks 4-5)
  Free inodes:
"""


def plant(tree: Path, names: list[str]) -> None:
    """A tree whose entries come into being in the order of `names`."""
    tree.mkdir()
    for name in names:
        (tree / name).write_text(f"this is {name}")
    os.utime(tree / "old", (names.index("old"), OLD))
    (tree / "folder").mkdir()
    (tree / "folder" / "link").symlink_to("/nowhere")
    os.link(tree / "old", tree / "folder" / "hard")


async def made(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    plant(folder / "tree", names)
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    await ext4.make(disk, OFFSET, folder / "tree", IDENTITY)
    return disk


async def test_two_are_the_same_bytes(tmp_path: Path) -> None:
    one = await made(tmp_path / "one", ["old", "Zeta", "alpha", "a file"])
    two = await made(tmp_path / "two", ["a file", "alpha", "Zeta", "old"])
    assert one.read_bytes() == two.read_bytes()
    there = f"{one}?offset={OFFSET}"
    await run(["e2fsck", "-f", "-n", there])
    shown = (await run(["debugfs", "-R", "stat /old", there])).text
    assert f"mtime: 0x{OLD:08x}" in shown
    assert f"ctime: 0x{ext4.EPOCH:08x}" in shown
    assert "Links: 2" in shown


def test_the_inodes_in_use() -> None:
    assert ext4.inodes(DESCRIBED) == [2, 11, 12, 13, 21]
    with pytest.raises(HostError, match="dumpe2fs"):
        ext4.inodes("nonsense")
