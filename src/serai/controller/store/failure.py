"""A database that cannot be used for a while: a full disk, another process's lock, a failing disk.

What SQLite says of it becomes an error with a remedy, and the log has a line when it begins and one when it is over,
however often it was tried in between. What else SQLite refuses (a table that is not there) is a fault of ours, and is
left as it is.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from serai.lib.clock import Clock
from serai.schema.errors import UnavailableError

log = logging.getLogger(__name__)

RETRY_FIRST = 0.25
RETRY_MOST = 4.0
"""Seconds between two attempts of who cannot do without."""
LOCKED = "another process has it locked", "End what holds it (see: fuser -v {file}), as a backup or a shell"
WHY = {
    sqlite3.SQLITE_FULL: ("the disk is full", "Free space in {folder}"),
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_IOERR: ("the disk fails", "See what the kernel's log says of the disk of {folder}"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "See that {file} is there and may be written"),
    sqlite3.SQLITE_READONLY: ("it may only be read", "See that {folder} may be written, and is not mounted read-only"),
}
"""By SQLite's primary result code: the reason and the remedy."""


class StoreUnavailableError(UnavailableError):
    """The database cannot be used now; nothing of what was attempted was written."""


class Health:
    """Whether one of the database's two doors works; `what` is `read` or `written`."""

    def __init__(self, file: Path, what: str) -> None:
        self.failures = 0
        """How often it failed, ever: whoever waits sees by it whether another failed meanwhile."""
        self._file = file
        self._what = what
        self._standing: tuple[str, str] | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises StoreUnavailableError for what the block fails with, if it is the database that fails."""
        try:
            yield
        except (DBAPIError, PoolTimeoutError) as error:
            why = _why(error)
            if why is None:
                raise
            self._failed(why)
            raise self._error(why) from error
        if self._standing is not None:
            log.info("the database %s can be %s again", self._file, self._what)
            self._standing = None

    def check(self, seen: int) -> None:
        """Raises StoreUnavailableError if it failed since `failures` was `seen`, and still does."""
        if self._standing is not None and self.failures != seen:
            raise self._error(self._standing)

    def _failed(self, why: tuple[str, str]) -> None:
        self.failures += 1
        if self._standing is None:
            log.error("%s", self._error(why))
        self._standing = why

    def _error(self, why: tuple[str, str]) -> StoreUnavailableError:
        reason, remedy = why
        return StoreUnavailableError(
            f"the controller's database cannot be {self._what}: {reason}",
            field="database",
            value=self._file,
            remedy=f"{remedy.format(file=self._file, folder=self._file.parent)}, then ask again; "
            "VMs run on, and jobs go on by themselves.",
        )


def _why(error: DBAPIError | PoolTimeoutError) -> tuple[str, str] | None:
    if isinstance(error, PoolTimeoutError):
        return LOCKED
    code = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else WHY.get(code & 0xFF)


async def until_it_works(clock: Clock, attempt: Callable[[], Awaitable[None]]) -> None:
    """Try again and again while the database cannot be used: for what must not be given up."""
    delay = RETRY_FIRST
    while True:
        try:
            await attempt()
        except StoreUnavailableError:
            await clock.sleep(delay)
            delay = min(delay * 2, RETRY_MOST)
        else:
            return
