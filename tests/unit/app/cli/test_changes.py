"""What applying would change: wishes against what is."""

from typing import Any

import pytest

from serai.app.cli.changes import Change, difference, plan
from serai.app.cli.documents import parse
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.vm import VmEdit

CURRENT: dict[str, Any] = {
    "name": "web1",
    "labels": {"tier": "web"},
    "description": "",
    "spec": {
        "image": "tiny",
        "cpus": 1,
        "memory": 128 << 20,
        "running": True,
        "disks": [{"pool": "p", "size": 1 << 30, "volume": "web1-disk0", "keep": False}],
        "vnics": [{"network": "lan", "mac": "52:54:00:00:00:01", "ip": "10.77.0.100"}],
    },
}


def change(spec: str, top: str = "", current: dict[str, Any] | None = CURRENT) -> Change:
    return plan(parse(f"kind: vm\nname: web1\n{top}spec: {spec}\n", "f.yaml")[0], current)


def body(changed: Change) -> dict[str, Any]:
    edit = changed.calls[0].body
    assert isinstance(edit, VmEdit)
    return edit.model_dump(mode="json", exclude_unset=True)


def test_what_is_not_there_is_created() -> None:
    made = change("{cpus: 2}", current=None)
    assert made.creates
    assert [call.endpoint for call in made.calls] == ["vm.create"]


def test_what_is_as_wished_is_left_alone() -> None:
    wish = "{image: tiny, memory: 128M, running: true, disks: [{pool: p, size: 1G}], vnics: [{network: lan}]}"
    same = change(wish, "labels: {tier: web}\n")
    assert same.calls == []
    assert difference(same) == ""


def test_only_what_differs_is_edited() -> None:
    edited = change("{cpus: 1, memory: 256M}", "labels: {tier: db}\n")
    assert body(edited) == {"memory": 256 << 20, "labels": {"tier": "db"}}
    assert edited.fields == ["memory", "labels"]


def test_a_longer_list_keeps_what_the_controller_filled_in() -> None:
    grown = change("{vnics: [{network: lan}, {network: dmz}]}")
    assert body(grown)["vnics"] == [
        {"network": "lan", "mac": "52:54:00:00:00:01", "ip": "10.77.0.100"},
        {"network": "dmz"},
    ]


def test_running_is_a_call_of_its_own() -> None:
    stopped = change("{running: false, cpus: 2}")
    assert [call.endpoint for call in stopped.calls] == ["vm.edit", "vm.stop"]
    off = {**CURRENT, "spec": {**CURRENT["spec"], "running": False}}
    assert [call.endpoint for call in change("{running: true}", current=off).calls] == ["vm.start"]


@pytest.mark.parametrize("spec", ["{image: debian}", "{machine: microvm}", "{host: h1}"])
def test_what_cannot_change_is_refused_with_its_line(spec: str) -> None:
    with pytest.raises(ConflictError, match=r"f\.yaml:3: this cannot change"):
        change(spec)


def test_kinds_without_an_edit_refuse_every_difference() -> None:
    network = {"name": "lan", "labels": {}, "description": "", "spec": {"bridge": "br0", "subnet": "10.0.0.0/24"}}
    text = "kind: network\nname: lan\nspec: {bridge: br1, subnet: 10.0.0.0/24}\n"
    with pytest.raises(ConflictError, match="bridge"):
        plan(parse(text, "f.yaml")[0], network)


def test_the_difference_speaks_of_the_wished_fields_only() -> None:
    text = difference(change("{memory: 256M, cpus: 1, vnics: [{network: dmz}]}"))
    lines = text.splitlines()
    assert lines[:2] == ["--- vm/web1 (now)", "+++ vm/web1 (f.yaml:1)"]
    assert [line for line in lines[2:] if line[0] in "+-"] == [
        "-  memory: 128M",
        "+  memory: 256M",
        "-  - network: lan",
        "+  - network: dmz",
    ]
    assert "mac" not in text


def test_an_upload_is_no_document_that_can_be_made() -> None:
    """Its content is in a file: the job would wait for it for ever."""
    text = f"kind: image\nname: cloud\nspec:\n  source: upload\n  sha256: '{'0' * 64}'\n"
    (document,) = parse(text, "f.yaml")
    with pytest.raises(InvalidError, match=r"f\.yaml:4: ") as caught:
        plan(document, None)
    assert caught.value.info.field == "spec.source"
    assert "serai image import" in str(caught.value.info.remedy)
    # One that is there is as wished.
    current = {"labels": {}, "description": "", "spec": {"source": "upload", "sha256": "0" * 64}}
    assert plan(document, current).calls == []


def test_only_a_vm_is_moved_to_another_host() -> None:
    (document,) = parse("kind: pool\nname: p\nspec: {host: h2}\n", "f.yaml")
    with pytest.raises(ConflictError) as caught:
        plan(document, {"labels": {}, "description": "", "spec": {"host": "h1"}})
    assert "vm migrate" not in str(caught.value.info.remedy)


def test_a_document_may_leave_out_what_the_resource_has() -> None:
    (document,) = parse("kind: volume\nname: v\nspec: {size: 20G}\n", "f.yaml")
    current = {"labels": {}, "description": "", "spec": {"pool": "p", "size": 10 << 30, "image": None}}
    grown = plan(document, current)
    assert grown.fields == ["size"]
    assert grown.calls[0].body is not None
    assert grown.calls[0].body.model_dump(exclude_unset=True) == {"size": 20 << 30}
    assert "pool" not in difference(grown)
    with pytest.raises(InvalidError, match=r"f\.yaml:3: 'pool' is missing"):
        plan(document, None)
    (described,) = parse("kind: volume\nname: v\ndescription: data\n", "f.yaml")
    assert plan(described, current).fields == ["description"]


def test_a_partial_document_is_checked_with_what_is_there() -> None:
    (document,) = parse("kind: network\nname: lan\nspec: {gateway: 10.9.0.1}\n", "f.yaml")
    spec = {"bridge": "br0", "subnet": "10.0.0.0/24", "gateway": None}
    with pytest.raises(InvalidError, match="not inside subnet"):
        plan(document, {"labels": {}, "description": "", "spec": spec})


def test_a_volume_that_would_shrink_is_refused_with_its_line() -> None:
    (document,) = parse("kind: volume\nname: v\nspec:\n  size: 1G\n", "f.yaml")
    with pytest.raises(InvalidError, match=r"f\.yaml:4: volume v has 10G, and volumes only grow"):
        plan(document, {"labels": {}, "description": "", "spec": {"pool": "p", "size": 10 << 30}})


def test_a_disk_of_another_size_does_not_take_the_place_of_the_one_that_is_there() -> None:
    text = "kind: vm\nname: a\nspec:\n  disks:\n  - pool: p\n    size: 2G\n"
    (document,) = parse(text, "f.yaml")
    disk = {"volume": "a-disk0", "pool": "p", "size": 1 << 30, "keep": False}
    have = {"labels": {}, "description": "", "spec": {"disks": [disk]}}
    with pytest.raises(ConflictError, match=r"f\.yaml:6: disk 0 of vm/a is volume a-disk0 of 1G") as caught:
        plan(document, have)
    assert caught.value.info.field == "spec.disks[0].size"
    assert "serai volume resize a-disk0 2G" in (caught.value.info.remedy or "")
    (same,) = parse(text.replace("2G", "1G"), "f.yaml")
    assert plan(same, have).calls == []


def test_null_is_no_difference() -> None:
    text = difference(change("{cpus: 2, host: null, vnics: [{network: lan, ip: null}]}"))
    assert "null" not in text
    assert "host" not in text
