"""The journal: what was appended is there, a torn end is dropped, damage is named."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

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
    journal.append("vm", "a", {"n": 1})
    journal.append("vm", "b", {"n": 2})
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
