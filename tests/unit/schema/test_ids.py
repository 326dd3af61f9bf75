"""Which names may be given, and where documents refer to other resources."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from serai.lib.ids import new_id
from serai.schema.ids import HostName, HostRef, NewName, PoolRef, VmId, VolumeRef, is_id, places, references
from serai.schema.vm import Vm, VmEdit, VmReport
from serai.schema.volume import Volume


class Disk(BaseModel):
    pool: PoolRef
    volume: VolumeRef | None = None


class Wish(BaseModel):
    name: NewName
    disks: list[Disk] = []
    hosts: list[HostRef] = []
    home: HostName | None = None


def test_no_name_that_is_given_looks_like_an_id() -> None:
    assert is_id(new_id()) and is_id(new_id(VmId))
    for name in ("web1", "0123456789a", "0123456789abc", "0123456789ag", "0123456789ab\n"):
        assert not is_id(name)
    assert Wish(name="0123456789abc").name == "0123456789abc"
    for field in ({"name": "0123456789ab"}, {"name": "web1", "home": "0123456789ab"}):
        with pytest.raises(ValidationError, match="would be taken for an id; choose another one"):
            Wish.model_validate(field)


def test_a_reference_takes_a_name_or_an_id_and_an_id_no_name() -> None:
    assert Wish.model_validate({"name": "a", "disks": [{"pool": "fast", "volume": new_id()}]}).disks[0].pool == "fast"
    for pool in ("No_Name", "", "a\n", "x" * 64):
        with pytest.raises(ValidationError, match="pattern"):
            Disk.model_validate({"pool": pool})
    with pytest.raises(ValidationError, match="pattern"):
        VmReport.model_validate({"vm": "web1", "host": "h1", "epoch": 1, "state": "running", "since": 0})


def test_references_are_found_where_the_schema_marks_them() -> None:
    document: dict[str, Any] = {
        "disks": [{"pool": "a"}, {"pool": "b", "volume": "c"}, {"pool": None}],
        "hosts": ["h1", 7],
        "home": "h2",
    }
    found = list(references(Wish, [document]))
    assert [(one.kind, one.loc, one.text) for one in found] == [
        ("pool", ("disks", 0, "pool"), "a"),
        ("pool", ("disks", 1, "pool"), "b"),
        ("volume", ("disks", 1, "volume"), "c"),
        ("host", ("hosts", 0), "h1"),
    ]
    for one, text in ((found[1], "d"), (found[3], "h3")):
        one.holder[one.key] = text
    assert (document["disks"][1], document["hosts"]) == ({"pool": "d", "volume": "c"}, ["h3", 7])
    assert list(references(Wish, [{"disks": {"pool": "a"}, "hosts": "h1"}])) == []


def test_what_vms_and_volumes_refer_to() -> None:
    assert set(places(Vm)) == {
        (("spec", "image"), "image"),
        (("spec", "host"), "host"),
        (("spec", "disks", "*", "pool"), "pool"),
        (("spec", "disks", "*", "volume"), "volume"),
        (("spec", "vnics", "*", "network"), "network"),
    }
    assert {kind for _, kind in places(VmEdit)} == {"pool", "volume", "network"}
    assert dict(places(Volume)) == {
        ("spec", "pool"): "pool",
        ("spec", "image"): "image",
        ("status", "vm"): "vm",
        ("status", "owner"): "vm",
    }
