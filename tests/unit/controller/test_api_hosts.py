"""Hosts over the API: what people say of them, and what placement makes of it."""

from __future__ import annotations

import pytest
from tests.unit.controller.conftest import GIB, World

from serai.schema.host import HostSpec


async def test_an_edit_changes_what_it_names_and_keeps_the_rest(world: World) -> None:
    before = await world.ok("GET", "/v1/hosts/h1")
    edit = {"schedulable": False, "memory_reserve": "2G", "labels": {"rack": "a"}, "description": "On the left"}
    after = await world.ok("PATCH", "/v1/hosts/h1", edit, status=200)
    assert after["spec"] == {"schedulable": False, "memory_reserve": 2 * GIB}
    assert (after["labels"], after["description"], after["generation"]) == ({"rack": "a"}, "On the left", 2)
    assert after == await world.ok("GET", f"/v1/hosts/{before['id']}")
    again = await world.ok("PATCH", "/v1/hosts/h1", {"schedulable": True})
    assert again == {**after, "spec": {**after["spec"], "schedulable": True}, "generation": 3}
    # What is as it was is no change: no event, no generation.
    events = (await world.ok("GET", "/v1/events"))["items"]
    assert [event["message"] for event in events if event["kind"] == "host.changed"] == [
        "changed: description, labels, memory_reserve, schedulable",
        "changed: schedulable",
    ]
    assert await world.ok("PATCH", "/v1/hosts/h1", {"schedulable": True}) == again
    assert (await world.ok("GET", "/v1/events"))["items"] == events


@pytest.mark.parametrize(
    ("host", "body", "field", "status"),
    [
        ("h9", {"schedulable": True}, "host", 404),
        ("h1", {"memory_reserve": "8G"}, "memory_reserve", 422),
        ("h1", {"memory_reserve": "-1G"}, "memory_reserve", 422),
        ("h1", {"memory_reserve": "lots"}, "memory_reserve", 422),
        ("h1", {"schedulable": "perhaps"}, "schedulable", 422),
        ("h1", {"labels": {"a": "\n"}}, "labels.a", 422),
        ("h1", {"name": "h2"}, "name", 422),
    ],
)
async def test_edits_that_cannot_be(world: World, host: str, body: dict[str, object], field: str, status: int) -> None:
    error = await world.refused("PATCH", f"/v1/hosts/{host}", body)
    assert (error["field"], error["status"]) == (field, status)


async def test_a_host_without_facts_takes_any_reserve(world: World) -> None:
    async with world.store.transaction() as tx:
        h3 = await tx.hosts.find("h3")
        await tx.hosts.replace(h3.model_copy(update={"status": h3.status.model_copy(update={"facts": None})}))
    await world.ok("PATCH", "/v1/hosts/h3", {"memory_reserve": "64G"})
    async with world.store.read() as view:
        assert (await view.hosts.find("h3")).spec == HostSpec(memory_reserve=64 * GIB)


async def test_placement_goes_by_it(world: World) -> None:
    await world.ok("PATCH", "/v1/hosts/h1", {"memory_reserve": "7G"})
    await world.ok("PATCH", "/v1/hosts/h2", {"memory_reserve": "6G"})
    body = {"name": "big", "spec": {"image": "tiny", "memory": "4G"}}
    error = await world.refused("POST", "/v1/vms", body)
    assert (error["field"], error["remedy"]) == ("spec.memory", "Ask for 2G or less.")
    for name in ("h1", "h2"):
        await world.ok("PATCH", f"/v1/hosts/{name}", {"memory_reserve": 0, "schedulable": False})
    error = await world.refused("POST", "/v1/vms", body)
    assert "h1 takes no new VMs; h2 takes no new VMs" in error["message"]
    assert "--schedulable" in error["remedy"]
    # By name it is taken all the same.
    body["spec"] = {"image": "tiny", "memory": "4G", "host": "h1"}
    await world.ok("POST", "/v1/vms", body, status=202)
