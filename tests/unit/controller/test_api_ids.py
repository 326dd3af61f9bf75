"""The API takes names and ids and shows names; what it writes refers by id."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.controller.conftest import World

from serai.lib.ids import new_id
from serai.schema.vm import VmState

DISK = {"pool": "shared0", "size": "1G"}
LIKE_AN_ID = "0123456789ab"


async def ids(world: World) -> dict[str, str]:
    """Name to id of all that is there from the beginning."""
    found = {}
    for path in ("hosts", "pools", "images", "networks"):
        found.update({item["name"]: item["id"] for item in (await world.ok("GET", f"/v1/{path}"))["items"]})
    return found


def spec(known: dict[str, str]) -> dict[str, Any]:
    disk = {"pool": known["shared0"], "size": "1G"}
    return {"image": known["tiny"], "memory": "1G", "disks": [disk], "vnics": [{"network": known["lan"]}]}


@pytest.mark.parametrize("by", ["name", "id"])
async def test_names_and_ids_are_taken_names_are_shown_and_ids_are_stored(world: World, by: str) -> None:
    known = await ids(world)
    given = spec({name: name for name in known} if by == "name" else known)
    host = known["h1"] if by == "id" else "h1"
    await world.done("POST", "/v1/vms", {"name": "web1", "spec": {**given, "host": host}})
    shown, (listed,) = await world.ok("GET", "/v1/vms/web1"), (await world.ok("GET", "/v1/vms"))["items"]
    assert (listed["spec"], listed["status"]) == (shown["spec"], shown["status"])
    assert await world.ok("GET", f"/v1/vms/{shown['id']}") == shown
    (disk,), (vnic,) = shown["spec"]["disks"], shown["spec"]["vnics"]
    assert (shown["spec"]["image"], shown["spec"]["host"], vnic["network"]) == ("tiny", "h1", "lan")
    assert (disk["pool"], disk["volume"]) == ("shared0", "web1-disk0")
    volume = await world.ok("GET", "/v1/volumes/web1-disk0")
    assert (volume["spec"]["pool"], volume["status"]["vm"], volume["status"]["owner"]) == ("shared0", "web1", "web1")
    async with world.store.read() as view:
        vm, made = await view.vms.find("web1"), await view.volumes.find("web1-disk0")
    assert (vm.spec.image, vm.spec.host, vm.spec.volumes) == (known["tiny"], "h1", [made.id])
    assert (vm.spec.disks[0].pool, vm.spec.vnics[0].network) == (known["shared0"], known["lan"])
    assert (made.spec.pool, made.status.vm, made.status.owner) == (known["shared0"], vm.id, vm.id)


async def test_an_unknown_reference_is_refused_with_its_place(world: World) -> None:
    for wrong, field, kind, value in (
        ({"image": "none"}, "spec.image", "image", "none"),
        ({"host": "h9"}, "spec.host", "host", "h9"),
        ({"disks": [DISK, {**DISK, "pool": LIKE_AN_ID}]}, "spec.disks[1].pool", "pool", LIKE_AN_ID),
        ({"disks": [{"volume": "none"}]}, "spec.disks[0].volume", "volume", "none"),
        ({"vnics": [{"network": "lan"}, {"network": "wan"}]}, "spec.vnics[1].network", "network", "wan"),
    ):
        error = await world.refused("POST", "/v1/vms", {"name": "web1", "spec": {"image": "tiny", **wrong}})
        assert (error["status"], error["field"], error["value"]) == (404, field, value)
        assert error["message"] == f"there is no {kind} {value}"
        assert f"serai {kind} list" in error["remedy"]
    await world.create("web1")
    error = await world.refused("PATCH", "/v1/vms/web1", {"disks": [DISK, {"pool": "none", "size": "1G"}]})
    assert (error["status"], error["field"]) == (404, "disks[1].pool")
    error = await world.refused("POST", "/v1/vms/web1/migrate", {"to": "h9"})
    assert (error["status"], error["field"], error["value"]) == (404, "to", "h9")


async def test_a_name_that_looks_like_an_id_is_not_given(world: World) -> None:
    await world.create("web1")
    await world.becomes("web1", VmState.STOPPED)
    volume = {"name": LIKE_AN_ID, "spec": {"pool": "shared0", "size": "1G"}}
    upload = {"name": LIKE_AN_ID, "spec": {"source": "upload", "sha256": "a" * 64}}
    network = {"name": LIKE_AN_ID, "spec": {"bridge": "br-x", "subnet": "10.9.0.0/24"}}
    for method, path, body in (
        ("POST", "/v1/vms", {"name": LIKE_AN_ID, "spec": {"image": "tiny"}}),
        ("POST", "/v1/pools", {"name": LIKE_AN_ID, "spec": {"host": "h1"}}),
        ("POST", "/v1/volumes", volume),
        ("POST", "/v1/images", upload),
        ("POST", "/v1/networks", network),
        ("POST", "/v1/vms/web1/clone", {"name": LIKE_AN_ID}),
        ("PATCH", "/v1/vms/web1", {"rename": LIKE_AN_ID}),
    ):
        error = await world.refused(method, path, body)
        field = "rename" if method == "PATCH" else "name"
        assert (error["status"], error["field"], error["value"]) == (422, field, LIKE_AN_ID)
        assert (error["message"], error["remedy"]) == (
            "a name of twelve hexadecimal digits would be taken for an id",
            "Choose another one.",
        )


async def test_an_id_is_looked_up_as_one_whatever_has_that_name(world: World) -> None:
    """No name looks like an id: were there one all the same, it would take nothing over."""
    for name in ("one", "two"):
        await world.volume(name, "shared0")
    async with world.store.transaction() as tx:
        one, two = await tx.volumes.find("one"), await tx.volumes.find("two")
        await tx.volumes.replace(two.model_copy(update={"name": one.id}))
        assert (await tx.volumes.identify({one.id, "one"})).items() >= {one.id: one.id, "one": one.id}.items()
    assert (await world.ok("GET", f"/v1/volumes/{one.id}"))["name"] == "one"


async def test_what_refers_to_something_that_is_gone_shows_its_id(world: World) -> None:
    vm = await world.create("web1", disks=[DISK])
    async with world.store.transaction() as tx:
        pool = await tx.pools.find("shared0")
        await tx.pools.delete(pool.id)
    for shown in (await world.ok("GET", "/v1/vms/web1"), (await world.ok("GET", "/v1/vms"))["items"][0]):
        assert (shown["spec"]["disks"][0]["pool"], shown["spec"]["image"]) == (pool.id, "tiny")
        assert shown["id"] == vm.id


async def test_a_job_shows_an_edit_as_it_was_asked_for(world: World) -> None:
    await world.create("web1")
    job = await world.done("PATCH", "/v1/vms/web1", {"vnics": [{"network": "lan"}]})
    assert job.params["changes"] == {"vnics": [{"network": "lan"}]}


async def test_a_volumes_name_says_nothing_of_whose_it_is(world: World) -> None:
    await world.volume("web1-disk7", "shared0")
    await world.create("web1", disks=[{"volume": "web1-disk7"}, DISK])
    first, second = (await world.ok("GET", "/v1/volumes?vm=web1"))["items"]
    assert (first["name"], first["status"]["owner"], first["status"]["vm"]) == ("web1-disk0", "web1", "web1")
    assert (second["name"], second["status"]["owner"], second["status"]["vm"]) == ("web1-disk7", None, "web1")
    disks = (await world.ok("GET", "/v1/vms/web1"))["spec"]["disks"]
    assert [(disk["volume"], disk["keep"]) for disk in disks] == [("web1-disk7", True), ("web1-disk0", False)]


async def test_a_vm_of_any_name_gets_volumes_and_clones(world: World) -> None:
    long = "x" * 63
    await world.create(long, disks=[DISK, DISK])
    names = [disk["volume"] for disk in (await world.ok("GET", f"/v1/vms/{long}"))["spec"]["disks"]]
    assert names == [f"{'x' * 57}-disk0", f"{'x' * 57}-disk1"]
    await world.becomes(long, VmState.STOPPED)
    await world.volume("web1-disk0", "shared0")
    await world.done("POST", f"/v1/vms/{long}/clone", {"name": "web1"})
    copies = (await world.ok("GET", "/v1/vms/web1"))["spec"]["disks"]
    assert [disk["volume"] for disk in copies] == ["web1-disk1", "web1-disk2"]
    assert (await world.ok("GET", "/v1/volumes/web1-disk1"))["status"]["owner"] == "web1"


async def test_volumes_are_listed_by_the_id_of_a_vm_or_pool_too(world: World) -> None:
    vm = await world.create("web1", disks=[DISK])
    known = await ids(world)
    for query in (f"vm={vm.id}", f"pool={known['shared0']}"):
        assert [item["name"] for item in (await world.ok("GET", f"/v1/volumes?{query}"))["items"]] == ["web1-disk0"]
    error = await world.refused("GET", f"/v1/volumes?vm={new_id()}")
    assert (error["status"], error["field"]) == (404, "vm")
