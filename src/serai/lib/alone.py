"""One process at a time works on a folder of state."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from serai.schema.errors import ConflictError


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold the lock file inside the block; the kernel drops it with the process, however that ends.

    Raises ConflictError, which names the process that holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConflictError(
                f"another {what} works on this state: process {file.read().strip() or 'unknown'}",
                field="state",
                value=lock.parent,
                remedy="Stop it first.",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
