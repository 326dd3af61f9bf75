"""The record of exports: what it keeps, and who may read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from serai.drivers.storage.export_records import ExportRecord, ExportRecords
from serai.schema.errors import HostError
from serai.schema.ids import HostName, VmId
from serai.schema.launch import Admission


def admission(name: str, secret: str = "a-secret-of-some-length") -> Admission:
    return Admission(
        vm=VmId(name * 12),
        epoch=1,
        host=HostName("h1"),
        initiator=f"iqn.2026-01.io.serai:{name}",
        user=name,
        password=SecretStr(secret),
    )


def test_all_comes_back_as_it_was_put(tmp_path: Path) -> None:
    file = tmp_path / "state" / "exports.json"
    records = ExportRecords(file)
    records.load()
    first = ExportRecord(volume="0" * 12, tid=1, path=Path("/a")).admitting(admission("a")).admitting(admission("b"))
    second = ExportRecord(volume="1" * 12, tid=records.next_tid() + 1, path=Path("/b"))
    records.put(first)
    records.put(second)
    again = ExportRecords(file)
    again.load()
    assert again.all() == [first, second]
    assert again.get("0" * 12) == first
    assert again.get("2" * 12) is None
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_number_is_never_used_again(tmp_path: Path) -> None:
    records = ExportRecords(tmp_path / "exports.json")
    for volume in ("a", "b", "c"):
        records.put(ExportRecord(volume=volume, tid=records.next_tid(), path=Path("/x")))
    assert [record.tid for record in records.all()] == [1, 2, 3]
    records.drop("c")
    records.drop("c")
    assert records.next_tid() == 4
    again = ExportRecords(tmp_path / "exports.json")
    again.load()
    assert again.next_tid() == 4


def test_an_initiator_is_admitted_once_with_its_last_secret() -> None:
    record = ExportRecord(volume="0" * 12, tid=1, path=Path("/a")).admitting(admission("a")).admitting(admission("b"))
    record = record.admitting(admission("a", "another-secret-for-it"))
    assert record.secrets == {"b": "a-secret-of-some-length", "a": "another-secret-for-it"}
    refused = record.refusing(VmId("b" * 12), 1, None)
    assert refused.secrets == {"a": "another-secret-for-it"}
    assert refused.known == {"a" * 12: 1, "b" * 12: 1}
    assert record.refusing(VmId("c" * 12), 1, None).admissions == record.admissions


def test_no_secret_shows_in_a_repr_or_an_error(tmp_path: Path) -> None:
    secret = "never-to-be-seen"
    assert secret not in repr(ExportRecord(volume="0" * 12, tid=1, path=Path("/a")).admitting(admission("a", secret)))
    file = tmp_path / "exports.json"
    entry = {"volume": "x", "tid": 1, "path": "/", "admissions": [secret]}
    file.write_text(json.dumps({"version": 1, "exports": [entry]}))
    with pytest.raises(HostError) as caught:
        ExportRecords(file).load()
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
