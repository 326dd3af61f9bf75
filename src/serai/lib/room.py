"""How far a file system may be filled: a reserve stays free for what must go on, above all the journal."""

from __future__ import annotations

import os
from pathlib import Path

from serai.schema.errors import CapacityError
from serai.schema.units import format_size

SHARE = 20
"""One in so many bytes is kept free."""
LEAST = 1 << 30
"""Bytes that are kept free at least, where they are no more than a tenth of the file system."""


def reserve(total: int) -> int:
    """Bytes to keep free on a file system of `total` bytes."""
    return max(total // SHARE, min(LEAST, total // 10))


def room(folder: Path) -> int:
    """Bytes that may be written below a folder. Raises OSError."""
    found = os.statvfs(folder)
    return max(0, found.f_bavail * found.f_frsize - reserve(found.f_blocks * found.f_frsize))


def need_room(folder: Path, size: int, what: str, name: str) -> None:
    """Raises CapacityError, which names `what`, unless `size` bytes may be written below a folder."""
    left = room(folder)
    if size > left:
        raise CapacityError(
            f"no room for the {what}: it needs {format_size(size)}, and {format_size(left)} may be filled",
            field=what,
            value=name,
            remedy=f"Free space on the file system of {folder}: some of it is kept free for the host's own records.",
        )
