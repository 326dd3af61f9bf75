"""The mark in a storage pool's folder: `.serai-pool`, with the id of the pool whose folder it is.

It tells a pool's folder from an empty mount point, and one pool's from another's, also where two machines see the same
folder. The word `made` behind the id says that the folder was made for the pool. An empty mark is anybody's: it is from
before marks had ids, or an operator put it there after a folder was lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from serai.lib import atomicfile

NAME = ".serai-pool"
TEMPORARY = ".serai-new-"
"""The begin of the names of files that are not whole yet."""
CONTENT = re.compile(r"[0-9a-f]{12}\.raw|\.serai-new-.*", re.DOTALL)
"""What a pool puts into its folder beside the mark."""
_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Mark:
    """`pool` is empty in a mark that is anybody's."""

    pool: str
    made: bool


def read(folder: Path) -> Mark | None:
    """The folder's mark; None if it has none, or is not there. Raises OSError."""
    try:
        with (folder / NAME).open("rb") as file:
            words = file.read(_LENGTH).decode(errors="replace").split()
    except FileNotFoundError:
        return None
    return Mark(pool=words[0] if words else "", made="made" in words[1:])


def put(folder: Path, pool: str, *, made: bool) -> None:
    """Mark the folder as the pool's, unless it is another's: read it again to see. Raises OSError."""
    present = read(folder)
    if present is not None and present.pool:
        return
    text = f"{pool} made\n" if made else f"{pool}\n"
    if present is not None:
        atomicfile.write_text(folder / NAME, text, mode=0o600)
        return
    # Written first and then linked: of two that mark the folder at once one is the first, and its mark is whole.
    fresh = folder / f"{TEMPORARY}mark-{secrets.token_hex(4)}"
    atomicfile.write_text(fresh, text, mode=0o600)
    try:
        # Not there any more: the first one has swept it away already.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            (folder / NAME).hardlink_to(fresh)
    finally:
        fresh.unlink(missing_ok=True)
    atomicfile.sync_folder(folder)


def purge(folder: Path, pool: str) -> None:
    """Delete the pool's volumes and its mark, and the folder if it was made for it; nothing, if it is another's.

    What is no volume stays, and the folder with it. Raises OSError.
    """
    mark = read(folder)
    if mark is None or mark.pool != pool:
        return
    for entry in list(os.scandir(folder)):
        if CONTENT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry)
    (folder / NAME).unlink(missing_ok=True)
    if mark.made and not os.listdir(folder):
        folder.rmdir()
