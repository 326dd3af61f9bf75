"""Files that are whole or absent, also after a power cut.

Write to a temporary file in the same folder, fsync it, rename it over the target, fsync the folder.
"""

import os
import secrets
from pathlib import Path


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644, gid: int | None = None) -> None:
    """Put `data` at `path` atomically and durably with exactly this mode, and group if given.

    The file never exists with wider rights than `mode`. Raises OSError; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if gid is not None:
                os.fchown(file.fileno(), -1, gid)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str, *, mode: int = 0o644, gid: int | None = None) -> None:
    """Like `write_bytes`, for UTF-8 text."""
    write_bytes(path, text.encode(), mode=mode, gid=gid)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
