"""The host's journal: what this machine must still know after a crash or a reboot, with no controller in reach.

One file of lines, each a checksum and a JSON record. `append` returns only when the line is on the disk (fdatasync),
and that is what makes a migration's commit point a local matter. The file is grown ahead in blocks of zeros, so that a
commit overwrites allocated space and waits for no metadata. A line torn by a power cut is the last one, and is dropped;
a damaged line before others is an error that names it, never a silent loss. At start, and now and then by `compact`,
the journal is rewritten with only what still counts.

Records are `Entry` values: kind and key say what they replace. The newest of a (kind, key) counts; `data=None` forgets.
It holds CHAP passwords (in launches), so it is 0600.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from serai.schema.errors import HostError

GROW = 1 << 20
"""Bytes by which the file grows ahead of the writing."""
COMPACT_FROM = 4 << 20
"""Bytes from which `compact` has something to do."""


class Journal:
    """Newest record per (kind, key), durable. Not thread-safe: the agent's event loop owns it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        self._fd = -1
        self._end = 0
        self._room = 0
        self._rewritten = 0

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read, compact and open for writing. Raises HostError for damage before the end."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = cls(path)
        for kind, key, data in _read(path):
            journal._remember(kind, key, data)
        journal._rewrite()
        return journal

    def close(self) -> None:
        """Close the file; what was appended is on the disk already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """The newest record's data, or none."""
        return self._records.get((kind, key))

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        """Key to data, of all records of a kind, oldest key first."""
        return {key: data for (found, key), data in self._records.items() if found == kind}

    def append(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        """Durable when it returns. `data` none forgets the key. Raises HostError (no space, I/O error)."""
        line = _line(kind, key, data)
        try:
            if self._end + len(line) > self._room:
                self._grow(len(line))
            written = os.pwrite(self._fd, line, self._end)
            if written != len(line):
                raise OSError("short write")
            os.fdatasync(self._fd)
        except OSError as error:
            raise HostError(
                f"cannot write the host's journal {self._path}: {error}",
                remedy="Free space on its file system; nothing was changed.",
            ) from error
        self._end += len(line)
        self._remember(kind, key, data)

    def compact(self) -> bool:
        """Rewrite the file if it is large and mostly of the past; whether it was. Some ms, so never amid a move.

        Raises HostError; the journal is as good as before then.
        """
        if self._end < COMPACT_FROM or self._end < 2 * self._rewritten:
            return False
        self._rewrite()
        return True

    def _remember(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        self._records.pop((kind, key), None)
        if data is not None:
            self._records[kind, key] = data

    def _grow(self, need: int) -> None:
        room = self._end + need + GROW
        os.posix_fallocate(self._fd, self._end, room - self._end)
        os.fsync(self._fd)
        self._room = room

    def _rewrite(self) -> None:
        content = b"".join(_line(kind, key, data) for (kind, key), data in self._records.items())
        try:
            fd = _replace(self._path, content, room=GROW)
        except OSError as error:
            raise HostError(
                f"cannot rewrite the host's journal {self._path}: {error}",
                remedy="Free space on its file system; nothing was changed.",
            ) from error
        self.close()
        self._fd, self._end, self._room = fd, len(content), len(content) + GROW
        self._rewritten = len(content)


def _replace(path: Path, content: bytes, *, room: int) -> int:
    """Put a file with this content and so many bytes of room behind it in the place of `path`; open, for writing."""
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.posix_fallocate(fd, len(content), room)
        os.fsync(fd)
        os.replace(fresh, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        os.close(fd)
        fresh.unlink(missing_ok=True)
        raise
    return fd


def _line(kind: str, key: str, data: dict[str, Any] | None) -> bytes:
    body = json.dumps([kind, key, data], separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _read(path: Path) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    try:
        content = path.read_bytes().rstrip(b"\0")
    except FileNotFoundError:
        return
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            checksum, body = line.split(b" ", 1)
            if int(checksum, 16) != zlib.crc32(body):
                raise ValueError("checksum")
            kind, key, data = json.loads(body)
        except ValueError as error:
            if number == len(lines) or not any(lines[number:]):
                return  # torn by a crash in mid-write: nobody was told that it was written
            raise HostError(
                f"the host's journal {path} is damaged in line {number}",
                remedy="Move the file away only after making sure that none of its VMs runs on another host; the agent "
                "names those whose QEMU still runs here then, and 'serai vm delete --force' ends them.",
            ) from error
        yield kind, key, data
