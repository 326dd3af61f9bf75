"""Sending a file with progress before the user's eyes, and checking it first."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from serai.app.cli.output import note
from serai.schema.errors import InvalidError
from serai.schema.units import format_size

if TYPE_CHECKING:
    from serai.client.http import Client

TENTH = 10


async def check(file: Path, sha256: str) -> None:
    """Raise InvalidError if the file's sum is not the given one."""

    def digest() -> str:
        with file.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()

    try:
        have = await asyncio.to_thread(digest)
    except OSError as error:
        raise _unreadable(file, error) from error
    if have != sha256.lower():
        raise InvalidError(
            f"the file's SHA-256 is {have}",
            field="sha256",
            value=sha256,
            remedy=f"Get {file.name} again, or give the right sum.",
        )


async def upload(client: Client, name: str, file: Path) -> None:
    """Send the content of image `name`: a bar on a terminal, a line for each tenth elsewhere. Raises SeraiError."""
    try:
        size = file.stat().st_size
        if sys.stderr.isatty():
            await _with_bar(client, name, file, size)
            return
        tell = Tenths(size, file.name)
        await client.upload(name, file, tell.add)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> InvalidError:
    return InvalidError(
        f"{file} cannot be read: {error.strerror or error}",
        field="FILE",
        value=str(file),
        remedy="Give the file of an image that can be read to its end.",
    )


async def _with_bar(client: Client, name: str, file: Path, size: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"sending {file.name}", total=size)
        await client.upload(name, file, lambda count: progress.advance(task, count))


class Tenths:
    """Tells of every tenth of the whole that went."""

    def __init__(self, total: int, what: str) -> None:
        self._total = max(total, 1)
        self._what = what
        self._sent = 0
        self._told = 0

    def add(self, count: int) -> None:
        """Bytes that went."""
        self._sent += count
        tenth = self._sent * TENTH // self._total
        if tenth > self._told:
            self._told = tenth
            note(f"sending {self._what}: {tenth * TENTH}% ({format_size(self._sent)} of {format_size(self._total)})")
