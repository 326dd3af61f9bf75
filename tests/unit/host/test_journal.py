"""The journal: what was written is there, what no sync had reached may be lost with the power, damage is named."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serai.host.journal import Journal
from serai.schema.errors import HostError


def test_it_remembers_the_newest_and_forgets(tmp_path: Path) -> None:
    path = tmp_path / "state/journal"
    journal = Journal.open(path)
    journal.append("vm", "a", {"n": 1})
    journal.append("vm", "a", {"n": 2})
    journal.append("vm", "b", {"n": 3})
    journal.append("vm", "b", None)
    journal.close()
    again = Journal.open(path)
    assert again.all("vm") == {"a": {"n": 2}}
    assert path.stat().st_mode & 0o777 == 0o600
    again.close()


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.open(path)
    journal.append("vm", "a", {"n": 1})
    whole = len(path.read_bytes().rstrip(b"\0"))
    journal.append("vm", "a", {"n": 2})
    journal.close()
    content = path.read_bytes().rstrip(b"\0")
    for cut in range(whole + 1, len(content) - 1):
        path.write_bytes(content[:cut])
        torn = Journal.open(path)
        assert torn.get("vm", "a") == {"n": 1}
        torn.close()


def test_damage_before_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.open(path)
    journal.commit("vm", "a", {"n": 1})
    journal.commit("vm", "b", {"n": 2})
    journal.close()
    content = bytearray(path.read_bytes())
    content[15] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(HostError) as caught:
        Journal.open(path)
    assert "line 1" in caught.value.info.message
    assert caught.value.info.remedy


def test_without_space_nothing_is_claimed(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        with pytest.raises(HostError):
            for number in range(100):
                journal.append("vm", f"{number}", {"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    kept = journal.all("vm")
    journal.close()
    again = Journal.open(tmp_path / "journal")
    assert again.all("vm") == kept
    again.close()


def test_it_is_compacted_when_most_of_it_is_of_the_past(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    assert not journal.compact()
    for number in range(5):
        journal.append("vm", "one", {"number": number, "text": "x" * (1 << 20)})
    journal.append("vm", "two", {"number": 7})
    kept = journal.all("vm")
    assert journal.compact()
    assert not journal.compact()
    journal.append("vm", "two", {"number": 8})
    journal.close()
    assert (tmp_path / "journal").stat().st_size < 3 << 20
    again = Journal.open(tmp_path / "journal")
    assert again.all("vm") == {**kept, "two": {"number": 8}}
    again.close()
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


def test_a_compaction_without_space_changes_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    for number in range(5):
        journal.append("vm", "one", {"number": number, "text": "x" * (1 << 20)})
    (tmp_path / "journal.new").mkdir()
    with pytest.raises(HostError, match="rewrite"):
        journal.compact()
    (tmp_path / "journal.new").rmdir()
    journal.append("vm", "two", {"number": 1})
    journal.close()
    again = Journal.open(tmp_path / "journal")
    assert list(again.all("vm")) == ["one", "two"]
    again.close()


# --- what is on the disk when ---


class Syncs:
    """The journal's thread, as tests let it: `go` lets a sync happen, `fail` has that and others fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fail = False
        self.begun, self.go = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()
        self._fdatasync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, fd: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            self._loop.call_soon_threadsafe(self.begun.set)
            assert self.go.wait(20)
        self.count += 1
        if self.fail:
            raise OSError(errno.EIO, "Input/output error")
        self._fdatasync(fd)


@pytest.fixture
async def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


@pytest.fixture
async def journal(tmp_path: Path, syncs: Syncs) -> AsyncIterator[Journal]:
    """One whose batches are synced, as an agent has it."""
    opened = Journal.open(tmp_path / "journal")
    running = asyncio.create_task(opened.run())
    yield opened
    syncs.go.set()
    syncs.fail = False
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    opened.close()


def on_disk(path: Path, cut: Path) -> dict[str, Any]:
    """What another agent would read."""
    cut.write_bytes(path.read_bytes())
    again = Journal.open(cut)
    try:
        return again.all("vm")
    finally:
        again.close()


async def test_a_batch_is_one_sync_and_keeps_nobody_waiting_but_who_asks_for_it(journal: Journal, syncs: Syncs) -> None:
    journal.append("vm", "first", {})
    first = asyncio.create_task(journal.durable())
    await syncs.begun.wait()
    for number in range(100):
        journal.append("vm", f"{number}", {"n": number})
    waiting = [asyncio.create_task(journal.durable()) for _ in range(10)]
    # The disk is busy, and the loop is not.
    await asyncio.sleep(0)
    assert not first.done()
    assert not any(task.done() for task in waiting)
    syncs.go.set()
    await asyncio.gather(first, *waiting)
    assert syncs.count == 2


async def test_a_commit_makes_all_before_it_durable(journal: Journal, syncs: Syncs) -> None:
    journal.append("vm", "a", {"n": 1})
    await syncs.begun.wait()
    journal.append("vm", "b", {"n": 2})
    waiting = asyncio.create_task(journal.durable())
    await asyncio.sleep(0)
    journal.commit("lease", "c", {"n": 3})
    assert syncs.count == 1
    await waiting
    await journal.durable()
    assert syncs.count == 1, "the thread's is still under way"


@pytest.mark.parametrize("lost", range(1, 8))
async def test_a_power_cut_leaves_what_was_durable_and_a_beginning_of_the_rest(
    journal: Journal, syncs: Syncs, tmp_path: Path, lost: int
) -> None:
    """The kernel may have written any part of what followed the last sync."""
    path = tmp_path / "journal"
    journal.append("vm", "kept", {"n": 0})
    journal.commit("vm", "committed", {"n": 0})
    ends = []
    for number in range(3):
        ends.append(len(path.read_bytes().rstrip(b"\0")))
        journal.append("vm", f"{number}", {"n": number})
    content = bytearray(path.read_bytes())
    for number, start in enumerate(ends):
        if lost & (1 << number):
            content[start + 5 : start + 15] = bytes(10)
    cut = tmp_path / "cut"
    cut.write_bytes(content)
    first = next(number for number in range(3) if lost & (1 << number))
    assert list(on_disk(cut, tmp_path / "again")) == ["kept", "committed", *(f"{number}" for number in range(first))]


async def test_damage_of_what_was_durable_is_an_error_that_names_it(
    journal: Journal, syncs: Syncs, tmp_path: Path
) -> None:
    for number in range(3):
        journal.append("vm", f"{number}", {"n": number})
    syncs.go.set()
    await journal.durable()
    journal.append("vm", "next", {})
    path = tmp_path / "journal"
    content = path.read_bytes()
    for number in range(3):
        cut = tmp_path / "cut"
        cut.write_bytes(content.replace(b'"n":%d' % number, b'"n":9'))
        with pytest.raises(HostError, match=f"damaged in line {number + 1}"):
            Journal.open(cut)


async def test_a_sync_that_fails_reaches_who_waits_and_the_next_one_has_all(
    journal: Journal, syncs: Syncs, tmp_path: Path
) -> None:
    syncs.fail = True
    syncs.go.set()
    journal.append("vm", "a", {"n": 1})
    with pytest.raises(HostError, match="Input/output error"):
        await journal.durable()
    with pytest.raises(HostError, match="Input/output error"):
        journal.commit("lease", "b", {"n": 2})
    assert journal.get("lease", "b") is None
    syncs.fail = False
    journal.append("vm", "c", {"n": 3})
    await journal.durable()
    # Nobody knows what that file held: it is written again, without what failed.
    assert b'"b"' not in (tmp_path / "journal").read_bytes()
    assert on_disk(tmp_path / "journal", tmp_path / "cut") == {"a": {"n": 1}, "c": {"n": 3}}
    journal.commit("lease", "b", {"n": 4})
    assert journal.get("lease", "b") == {"n": 4}


async def test_it_is_compacted_while_a_sync_is_under_way(journal: Journal, syncs: Syncs, tmp_path: Path) -> None:
    for number in range(5):
        journal.append("vm", "one", {"number": number, "text": "x" * (1 << 20)})
    await syncs.begun.wait()
    assert journal.compact()
    await journal.durable()
    journal.append("vm", "two", {"n": 2})
    syncs.go.set()
    await journal.durable()
    assert list(on_disk(tmp_path / "journal", tmp_path / "cut")) == ["one", "two"]
