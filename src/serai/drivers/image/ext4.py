"""An ext4 file system out of a tree, in a disk image: nothing mounted, and the same bytes each time.

`mke2fs -d` takes the names in the order of the C locale, but each file's times as they are. Those are cut off at EPOCH
in the tree itself; the time of the last change of an inode cannot be set there, so it is set in the file system.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from pathlib import Path

from serai.lib.process import run
from serai.schema.errors import HostError

# Features by name, since GRUB and the guest's kernel must know them all, whatever this machine's mke2fs is set to.
FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
EPOCH = 1686355200
"""2023-06-10, in seconds since 1970: nothing in the file system is newer."""
ROOT = 2
FIRST = 11
"""The first inode that is not the file system's own."""


async def make(disk: Path, offset: int, tree: Path, identity: uuid.UUID) -> None:
    """Make the file system from byte `offset` to the end of `disk`, with all of `tree`. Raises HostError.

    Changes the times of the tree's files.
    """
    await asyncio.to_thread(_cut_times, tree)
    env = {**os.environ, "LC_ALL": "C", "E2FSPROGS_FAKE_TIME": str(EPOCH)}
    await run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-O", FEATURES, "-U", str(identity), "-m", "1", "-b", "4096"),
            *("-E", f"offset={offset},hash_seed={identity},lazy_itable_init=0,lazy_journal_init=0"),
            *("-d", str(tree), str(disk), f"{(disk.stat().st_size - offset) // 1024}k"),
        ],
        timeout=600,
        env=env,
    )
    there = f"{disk}?offset={offset}"
    described = await run(["dumpe2fs", there], env=env)
    script = "".join(f"set_inode_field <{inode}> ctime @{EPOCH}\n" for inode in inodes(described.text))
    done = await run(["debugfs", "-w", "-f", "-", there], input=script.encode(), env=env, timeout=600)
    # Its exit code is 0 whatever happened; beside its version it says only what went wrong.
    if wrong := [line for line in done.stderr.decode().splitlines() if not line.startswith("debugfs 1.")]:
        raise HostError(f"the file system's times could not be set: {wrong[0]}", field="image", value=disk)


def inodes(described: str) -> list[int]:
    """The numbers of all inodes in use that are files, by what `dumpe2fs` says of a file system. Raises HostError."""
    count = re.search(r"^Inode count:\s*(\d+)$", described, re.M)
    if count is None:
        raise HostError("dumpe2fs does not tell how many inodes there are", field="image")
    used = {ROOT, *range(FIRST, int(count[1]) + 1)}
    for row in re.findall(r"^\s*Free inodes: (\d.*)$", described, re.M):
        for part in row.split(", "):
            first, _, last = part.partition("-")
            used.difference_update(range(int(first), int(last or first) + 1))
    return sorted(used)


def _cut_times(tree: Path) -> None:
    for folder, folders, files in os.walk(tree, topdown=False):
        for name in (*files, *folders, "."):
            path = os.path.join(folder, name)
            os.utime(path, (EPOCH, min(EPOCH, int(os.lstat(path).st_mtime))), follow_symlinks=False)
