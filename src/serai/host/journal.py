"""The host's journal: what this machine must still know after a crash or a reboot, with no controller in reach.

One file of lines: a checksum, a mark, and a JSON record of kind, key and data. The newest record of a (kind, key)
counts; `data=None` forgets. It holds CHAP passwords (in launches), so it is 0600.

Every line is handed to the kernel, in order, before its call returns: a killed agent loses none. What a power cut may
take depends on how the line was written:

- `commit` returns once the line, and every line before it, is on the disk (fdatasync). That makes a migration's commit
  point a local matter. It blocks the event loop, so only what safety rests on is committed.
- `append` returns at once. A background task, `run`, syncs what was appended as one batch, in a thread.
- `durable` waits for that without blocking: what was appended before the call is on the disk when it returns.

A power cut thus takes at most the lines after the last sync. What their loss means, by kind:

- `lease` is committed. Claims decide who may run a VM, so none may be lost.
- `vm` is committed while the VM is leaving (`outgoing`, `sent`). Without that record a reboot would start the VM here,
  under a claim that is still `held`, although it may run at its destination.
- `vm` is appended otherwise. The record is then older than the truth, but the claims are not, and they decide whether
  the VM may run. Behind a lost record of a start, the VM waits for the repeat of the command, since its claim has
  another epoch. Without the record of an arriving VM its claim is `offered`, and the offer is turned down; `committed`
  makes that record durable. Without the record of a stop, an end or a failure that is milliseconds old, the VM is
  started or left as it was before.
- `command` is appended, and the reply sent only after `durable`. A command whose answer is lost has had no reply: it is
  repeated and carried out again, which handlers allow.
- `generation` goes with the answer of its command, which is repeated with the same generation. An older command that
  comes before that is carried out, as if it had arrived first.
- `pool` goes with the answer of its command, too, which is repeated.
- `machine` (the boot): what a reboot asks for is done again, and a power cut is a reboot.
- Records that were forgotten come back, and are forgotten later.

Of the lines after the last sync any part may be missing, in no order: the kernel writes pages as it likes. So each line
has a mark, the length of the file that was on the disk when the line was written. Damage before the greatest mark is an
error that names the line, never a silent loss. Behind that mark everything from the first damage on is dropped.

The file is grown ahead in blocks of zeros, so that a sync overwrites written space and waits for no metadata. At start,
and now and then by `compact`, it is rewritten with only what still counts; so it is after a sync that failed, because
nobody then knows what is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from serai.lib.atomicfile import sync_folder
from serai.schema.errors import HostError

log = logging.getLogger(__name__)

Record = tuple[str, str, dict[str, Any] | None]
"""Kind, key and data."""

GROW = 1 << 20
"""Bytes by which the file grows ahead of the writing."""
COMPACT_FROM = 4 << 20
"""Bytes from which `compact` has something to do."""
MARK = 10
"""Digits of a mark, hexadecimal."""


class Journal:
    """Newest record per (kind, key). Not thread-safe: the agent's event loop owns it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        self._fd = -1
        self._thread_fd = -1
        """The same file, opened once more: the kernel reports a failure once to each opening, and `commit` must hear of
        it although the thread has."""
        self._end = 0
        """Bytes that were written; and of those, that are on the disk."""
        self._synced = 0
        self._room = 0
        self._rewritten = 0
        self._doubtful = False
        """A sync failed: the file is rewritten before anything is added to it."""
        self._appended = asyncio.Event()
        self._batch: asyncio.Future[None] | None = None
        """Done with the next batch; made for those who wait for it."""
        self._thread = ThreadPoolExecutor(1, "journal")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read, compact and open for writing. Raises HostError for damage before the end."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = cls(path)
        for record in _read(path):
            journal._remember(*record)
        journal._rewrite()
        return journal

    def close(self) -> None:
        """Sync what is left and close the file. Raises HostError if that fails."""
        if self._fd < 0:
            return
        try:
            if self._doubtful:
                self._rewrite()
            self._fdatasync()
        finally:
            self._thread.shutdown()
            os.close(self._fd)
            os.close(self._thread_fd)
            self._fd = -1

    # --- reading ---

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """The newest record's data, or none."""
        return self._records.get((kind, key))

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        """Key to data, of all records of a kind, oldest key first."""
        return {key: data for (found, key), data in self._records.items() if found == kind}

    # --- writing ---

    def append(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        """Durable with the next batch. Raises HostError (no space, I/O error); then nothing is changed."""
        self._end += self._write(kind, key, data)
        self._remember(kind, key, data)
        self._appended.set()

    def commit(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        """Durable when it returns, with all before it. Raises HostError; then nothing is changed.

        The next write leaves out a line that failed. Until then a restarted agent may find it, and takes it for
        written: nobody was told either way.
        """
        length = self._write(kind, key, data)
        self._fdatasync()
        self._end += length
        self._remember(kind, key, data)
        self._all_synced()

    async def durable(self) -> None:
        """Return once all that was appended is on the disk. Raises HostError if it cannot be brought there."""
        if self._synced == self._end:
            return
        if self._batch is None:
            self._batch = asyncio.get_running_loop().create_future()
            self._batch.add_done_callback(lambda batch: batch.exception())  # also if all who waited were cancelled
        self._appended.set()
        await asyncio.shield(self._batch)

    async def run(self) -> None:
        """Sync what is appended, batch after batch, until cancelled."""
        while True:
            await self._appended.wait()
            self._appended.clear()
            batch, self._batch = self._batch, None
            try:
                await self._sync()
            except HostError as error:
                log.error("%s", error)
                if batch is not None:
                    batch.set_exception(error)
            else:
                if batch is not None:
                    batch.set_result(None)

    async def _sync(self) -> None:
        if self._doubtful:
            self._rewrite()
        fd, end = self._thread_fd, self._end
        if self._synced == end:
            return
        try:
            await self._in_thread(lambda: os.fdatasync(fd))
        except OSError as error:
            if fd == self._thread_fd:
                self._doubtful = True
                raise self._failed("write", error) from error
        if fd == self._thread_fd:  # else it was rewritten meanwhile, and all is on the disk
            self._synced = max(self._synced, end)

    async def _in_thread(self, function: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function)

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

    def _write(self, kind: str, key: str, data: dict[str, Any] | None) -> int:
        """Put a line behind the last one, which the caller then counts; its length."""
        if self._doubtful:
            self._rewrite()
        line = _line(self._synced, _body((kind, key, data)))
        try:
            while self._end + len(line) > self._room:
                _grow(self._fd, self._room)
                self._room += GROW
            if os.pwrite(self._fd, line, self._end) != len(line):
                raise OSError("short write")
        except OSError as error:
            raise self._failed("write", error) from error
        return len(line)

    def _fdatasync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._doubtful = True
            raise self._failed("write", error) from error

    def _all_synced(self) -> None:
        self._synced = self._end
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.set_result(None)

    def _rewrite(self) -> None:
        bodies = [_body((kind, key, data)) for (kind, key), data in self._records.items()]
        length = sum(len(_line(0, body)) for body in bodies)
        try:
            fd, thread_fd = _replace(self._path, b"".join(_line(length, body) for body in bodies))
        except OSError as error:
            raise self._failed("rewrite", error) from error
        if self._fd >= 0:
            os.close(self._fd)
            self._thread.submit(os.close, self._thread_fd)  # after a sync of it that may be under way
        self._fd, self._thread_fd = fd, thread_fd
        self._end, self._room, self._rewritten = length, length + GROW, length
        # Until its folder is synced too, a power cut may bring the old file back.
        self._synced, self._doubtful = 0, True
        try:
            sync_folder(self._path.parent)
        except OSError as error:
            raise self._failed("rewrite", error) from error
        self._doubtful = False
        self._all_synced()

    def _failed(self, verb: str, error: OSError) -> HostError:
        return HostError(
            f"cannot {verb} the host's journal {self._path}: {error}",
            remedy="Free space on its file system; nothing was changed.",
        )


def _grow(fd: int, size: int) -> None:
    """Add a block of zeros to a file of this size."""
    if os.pwrite(fd, bytes(GROW), size) != GROW:
        raise OSError("short write")
    os.fsync(fd)


def _replace(path: Path, content: bytes) -> tuple[int, int]:
    """Put a file with this content, synced, and room behind it in the place of `path`; two openings, for writing."""
    fresh = path.with_suffix(".new")
    with contextlib.ExitStack() as undo:
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, fd)
        undo.callback(fresh.unlink, missing_ok=True)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        _grow(fd, len(content))
        second = os.open(fresh, os.O_RDWR | os.O_CLOEXEC)
        undo.callback(os.close, second)
        os.replace(fresh, path)
        undo.pop_all()
    return fd, second


def _body(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _line(synced: int, body: bytes) -> bytes:
    mark = b"%0*x" % (MARK, synced)
    return b"%08x%s %s\n" % (zlib.crc32(mark + body), mark, body)


def _parse(line: bytes) -> tuple[int, Record]:
    """Mark and record. Raises ValueError for a line that was not written like this."""
    head, body = line.split(b" ", 1)
    if int(head[:8], 16) != zlib.crc32(head[8:] + body):
        raise ValueError("checksum")
    kind, key, data = json.loads(body)
    return int(head[8:], 16), (kind, key, data)


def _read(path: Path) -> list[Record]:
    """The records up to the first damage. Raises HostError if the damaged line had been durable."""
    try:
        content = path.read_bytes().rstrip(b"\0")
    except FileNotFoundError:
        return []
    records: list[Record] = []
    damage: tuple[int, int] | None = None
    offset = synced = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line:
                mark, record = _parse(line)
                synced = max(synced, mark)
                if damage is None:
                    records.append(record)
        except ValueError:
            damage = damage or (number, offset)
        offset += len(line) + 1
    if damage is not None and damage[1] < synced:
        raise HostError(
            f"the host's journal {path} is damaged in line {damage[0]}",
            remedy="Move the file away only after making sure that none of its VMs runs on another host; the agent "
            "names those whose QEMU still runs here then, and 'serai vm delete --force' ends them.",
        )
    return records
