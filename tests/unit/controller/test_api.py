"""The API as a whole, and the smaller nouns."""

from __future__ import annotations

import stat
from pathlib import Path
from types import NoneType
from typing import get_type_hints

import pytest
from tests.unit.controller.conftest import World

from serai.controller.api.app import HANDLERS
from serai.controller.api.auth import prepare
from serai.controller.api.resources import ACTIONS
from serai.controller.services.requester import Requester
from serai.controller.store import Store, Transaction
from serai.schema.endpoints import ENDPOINTS
from serai.schema.errors import InvalidError
from serai.schema.ids import HostName
from serai.schema.image import ImageKind
from serai.schema.job import Job
from serai.schema.vm import VmState


async def test_nothing_without_a_token(bare: World) -> None:
    for header in ("", "Bearer", "Bearer wrong", "Basic abc"):
        answer = await bare.http.get("/v1/vms", headers={"Authorization": header})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    # Not even the body is looked at.
    answer = await bare.http.post("/v1/vms", content="{", headers={"Authorization": ""})
    assert answer.status_code == 401
    assert (await bare.http.get("/v1/health", headers={"Authorization": ""})).json()["status"] == "ok"


async def test_the_description_has_every_route(bare: World) -> None:
    paths = (await bare.http.get("/v1/openapi.json")).json()["paths"]
    for row in ENDPOINTS.values():
        described = paths[row.path][row.method.lower()]
        assert described["summary"] == row.summary
        assert ("requestBody" in described) == (row.body is not None)
    assert HANDLERS.keys() == ENDPOINTS.keys()


def test_actions_take_what_their_endpoints_say() -> None:
    for name, service in ACTIONS.items():
        row = ENDPOINTS[name]
        hints = get_type_hints(service)
        returns = hints.pop("return")
        given = list(hints.values())
        item = [ENDPOINTS[f"{row.noun}.show"].result] if "{name}" in row.path else []
        body = [row.body] if row.body is not None else []
        assert given[: 2 + len(item) + len(body)] == [Transaction, Requester, *item, *body], name
        assert tuple(hints)[2 + len(item) + len(body) :] == row.query, name
        assert returns == (Job if row.job else row.result or NoneType), name


async def test_the_description_says_who_is_let_in(bare: World) -> None:
    document = (await bare.http.get("/v1/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]["HTTPBearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("security", "open") == ("open" if path == "/v1/health" else [{"HTTPBearer": []}]), path


async def test_the_description_has_what_is_not_json(bare: World) -> None:
    """Each with what is really taken or sent."""
    paths = (await bare.http.get("/v1/openapi.json")).json()["paths"]
    upload = paths["/v1/images/{name}/content"]["put"]
    assert upload["requestBody"]["content"].keys() == {"application/octet-stream"}
    assert upload["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Image")
    events = paths["/v1/events"]["get"]
    assert events["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert {"after", "Last-Event-ID"} <= {row["name"] for row in events["parameters"]}
    console = paths["/v1/vms/{name}/console"]["get"]
    assert {"101", "426"} <= console["responses"].keys()
    answer = await bare.http.get("/v1/vms/web1/console")
    assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
    assert "serai vm console web1" in answer.json()["error"]["remedy"]
    for row in ENDPOINTS.values():
        described = paths[row.path][row.method.lower()]
        if row.job:
            assert "Location" in described["responses"]["202"]["headers"]
        named = {given["name"] for given in described.get("parameters", [])}
        assert ("X-Serai-Reason" in named) == row.job
        assert set(row.query) <= named


async def test_lists_go_by_pages(bare: World) -> None:
    for number in range(5):
        await bare.host(f"h{number}")
    first = await bare.ok("GET", "/v1/hosts?limit=3")
    rest = await bare.ok("GET", f"/v1/hosts?limit=3&cursor={first['next']}")
    assert [host["name"] for host in first["items"] + rest["items"]] == ["h0", "h1", "h2", "h3", "h4"]
    assert rest["next"] is None


async def test_events_by_pages(world: World) -> None:
    await world.create("web1")
    page = await world.ok("GET", "/v1/events?limit=2")
    assert [event["seq"] for event in page["items"]] == [1, 2]
    rest = await world.ok("GET", f"/v1/events?after={page['next']}")
    assert rest["items"][0]["seq"] == 3
    assert {"vm.created", "job.state"} <= {event["kind"] for event in page["items"] + rest["items"]}


async def test_events_are_narrowed(world: World) -> None:
    await world.create("web1")
    await world.create("web2")
    everything = (await world.ok("GET", "/v1/events"))["items"]

    async def seqs(query: str) -> list[int]:
        return [event["seq"] for event in (await world.ok("GET", f"/v1/events?{query}"))["items"]]

    jobs = [event for event in everything if event["kind"].startswith("job.")]
    assert await seqs("kind=job") == [event["seq"] for event in jobs]
    assert await seqs("kind=job&last=2") == [event["seq"] for event in jobs[-2:]]
    mine = [event["seq"] for event in everything if event["resource"] == "vm/web2"]
    assert await seqs("resource=vm/web2") == mine
    assert await seqs(f"resource=vm/web2&last=99&after={mine[0]}") == mine[1:]
    first = await world.ok("GET", "/v1/events?last=3&limit=2")
    rest = await world.ok("GET", f"/v1/events?last=3&limit=2&cursor={first['next']}")
    assert [event["seq"] for event in first["items"] + rest["items"]] == [event["seq"] for event in everything[-3:]]
    answer = await world.http.get("/v1/events?kind=job", headers={"Accept": "text/event-stream"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "kind")


async def test_what_a_job_does_is_in_its_events(world: World) -> None:
    await world.create("web1")
    (job,) = (await world.ok("GET", "/v1/jobs"))["items"]
    told = {event["message"] for event in (await world.ok("GET", "/v1/events?kind=job"))["items"]}
    assert {f"vm.create {job['id']} is queued", f"vm.create {job['id']} is done"} <= told


async def test_jobs(world: World) -> None:
    await world.create("web1")
    await world.create("web2")
    jobs = (await world.ok("GET", "/v1/jobs"))["items"]
    assert [job["target"] for job in jobs] == ["vm/web2", "vm/web1"]
    assert (await world.ok("GET", "/v1/jobs?limit=1"))["next"]
    assert len((await world.ok("GET", "/v1/jobs?target=vm/web1&state=done"))["items"]) == 1
    error = await world.refused("POST", f"/v1/jobs/{jobs[0]['id']}/cancel")
    assert (error["status"], error["field"], error["value"]) == (409, "job", jobs[0]["id"])
    assert "it is done" in error["message"]
    assert (await world.refused("GET", "/v1/jobs/none"))["field"] == "job"
    assert (await world.refused("GET", "/v1/jobs?cursor=x"))["field"] == "cursor"


async def test_numbers_beyond_the_store_are_refused(bare: World) -> None:
    huge = "9" * 19
    assert (await bare.refused("GET", f"/v1/events?after={huge}"))["field"] == "after"
    for path in ("/v1/events?cursor=", "/v1/jobs?cursor="):
        for text in (huge, "9" * 40, "\u0663"):
            assert (await bare.refused("GET", path + text))["field"] == "cursor"


async def test_text_that_no_host_can_use_is_refused(world: World) -> None:
    """JSON can spell what UTF-8 cannot."""
    for text, field in (
        (r'{"name": "x\ud800", "spec": {"host": "h1"}}', "body"),
        (r'{"name": "p", "spec": {"host": "h1", "path": "/a\ud800"}}', "body"),
        (r'{"name": "p", "spec": {"host": "h1"}, "description": "\udc80"}', "body"),
        (r'{"name": "p", "spec": {"host": "h1"}, "labels": {"\ud800": "a"}}', "body"),
        (r'{"name": "p", "spec": {"host": "h1"}, "labels": {"a": "\u0000"}}', "labels.a"),
    ):
        answer = await world.http.post("/v1/pools", content=text, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text
    whole = r'{"name": "p", "spec": {"host": "h1", "export": "none"}, "description": "\ud83d\ude00"}'
    answer = await world.http.post("/v1/pools", content=whole, headers={"Content-Type": "application/json"})
    assert answer.is_success, answer.text


async def test_a_folder_is_one_pools_however_it_is_written(world: World) -> None:
    def body(name: str, path: str) -> dict[str, object]:
        return {"name": name, "spec": {"host": "h1", "path": path, "export": "none"}}

    await world.done("POST", "/v1/pools", body("p1", "//srv/./one/"))
    assert (await world.ok("GET", "/v1/pools/p1"))["spec"]["path"] == "/srv/one"
    assert (await world.refused("POST", "/v1/pools", body("p2", "///srv//one")))["status"] == 409
    for path in ("/srv/a\nb", "/" + "x" * 1024):
        assert (await world.refused("POST", "/v1/pools", body("p2", path)))["field"] == "spec.path"


async def test_pools(world: World) -> None:
    await world.host("h4", target=False)
    create = "/v1/pools"
    assert (await world.refused("POST", create, {"name": "p", "spec": {"host": "h9"}}))["field"] == "spec.host"
    assert (await world.refused("POST", create, {"name": "p", "spec": {"host": "h3"}}))["status"] == 503
    assert (await world.refused("POST", create, {"name": "shared0", "spec": {"host": "h1"}}))["field"] == "name"
    assert (await world.refused("POST", create, {"name": "p", "spec": {"host": "h1", "path": "a"}}))["field"] == (
        "spec.path"
    )
    error = await world.refused("POST", create, {"name": "p", "spec": {"host": "h4"}})
    assert (error["code"], error["field"], error["remedy"]) == ("unsupported", "spec.export", "apt install tgt")
    await world.done("POST", create, {"name": "p", "spec": {"host": "h4", "export": "none"}})
    await world.create("web1", disks=[{"pool": "shared0", "size": "4G"}])
    pool = await world.ok("GET", "/v1/pools/shared0")
    assert (pool["status"]["committed"], pool["status"]["volumes"]) == (4 << 30, 1)
    assert "web1-disk0" in (await world.refused("DELETE", "/v1/pools/shared0"))["message"]
    await world.done("DELETE", "/v1/pools/p")


async def test_volumes(world: World) -> None:
    create = "/v1/volumes"
    for spec, field in (
        ({"pool": "none", "size": "1G"}, "spec.pool"),
        ({"pool": "shared0", "size": "0"}, "spec.size"),
        ({"pool": "shared0", "size": "90G"}, "spec.size"),
        ({"pool": "shared0", "size": "1G", "image": "tiny"}, "spec.image"),
        ({"pool": "shared0", "size": "1G", "image": "debian"}, "spec.size"),
    ):
        assert (await world.refused("POST", create, {"name": "v", "spec": spec}))["field"] == field
    await world.done("POST", create, {"name": "v", "spec": {"pool": "shared0", "size": "2G"}})
    assert (await world.refused("PATCH", "/v1/volumes/v", {"size": "4G"}))["field"] == "state"
    await world.create("web1", disks=[{"pool": "shared0", "size": "4G"}])
    assert (await world.refused("PATCH", "/v1/volumes/web1-disk0", {"size": "1G"}))["field"] == "size"
    await world.done("PATCH", "/v1/volumes/web1-disk0", {"size": "6G", "description": "d"})
    volume = await world.ok("GET", "/v1/volumes/web1-disk0")
    grown = await world.ok("GET", "/v1/vms/web1")
    assert (grown["spec"]["disks"][0]["size"], grown["generation"]) == (6 << 30, 2)
    assert (volume["spec"]["size"], volume["generation"], volume["description"]) == (6 << 30, 2, "d")
    assert (await world.refused("DELETE", "/v1/volumes/web1-disk0"))["field"] == "volume"
    await world.done("DELETE", "/v1/volumes/v")


async def test_images(world: World) -> None:
    create, good = "/v1/images", {"source": "url", "url": "http://x/y", "sha256": "A" * 64}
    for spec, field in (
        ({"source": "build"}, "spec.recipe"),
        ({"source": "build", "recipe": "windows"}, "spec.recipe"),
        ({"source": "build", "recipe": "tiny", "url": "http://x"}, "spec.url"),
        ({**good, "url": "ftp://x"}, "spec.url"),
        ({**good, "sha256": "12"}, "spec.sha256"),
        ({**good, "format": "vmdk"}, "spec.format"),
        ({"source": "upload"}, "spec.sha256"),
    ):
        assert (await world.refused("POST", create, {"name": "i", "spec": spec}))["field"] == field
    assert (await world.refused("POST", create, {"name": "i", "spec": good, "host": "h3"}))["status"] == 503
    job = await world.done("POST", create, {"name": "i", "spec": good, "host": "h1"})
    assert job.params["host"] == "h1"
    assert (await world.ok("GET", "/v1/images/i"))["spec"]["sha256"] == "a" * 64
    await world.create("web1")
    assert "web1" in (await world.refused("DELETE", "/v1/images/tiny"))["message"]
    await world.done("DELETE", "/v1/images/i")


@pytest.mark.parametrize("noun", ["pool", "volume", "image"])
async def test_what_is_on_an_offline_host_is_deleted_by_force_alone(world: World, noun: str) -> None:
    if noun == "volume":
        await world.volume("left", "lost")
    async with world.store.transaction() as tx:
        await tx.images.update_status((await tx.images.find("tiny")).id, hosts=["h1", "h3"])
    path = f"/v1/{noun}s/{ {'pool': 'lost', 'volume': 'left', 'image': 'tiny'}[noun] }"
    error = await world.refused("DELETE", path)
    assert (error["status"], error["field"], error["value"]) == (503, "host", "h3")
    assert "--force" in error["remedy"]
    job = await world.done("DELETE", f"{path}?force=true")
    assert job.params["away"] == ["h3"]
    (left,) = (await world.ok("GET", "/v1/hosts/h3"))["status"]["leftovers"]
    assert left["what"] == f"{noun} {path.rpartition('/')[2]}"


async def test_a_host_that_is_gone(world: World) -> None:
    """Not one that is online, nor one that something is on, whatever ties it to the host."""
    path = "/v1/hosts/h3"
    assert "Stop its agent" in (await world.refused("DELETE", "/v1/hosts/h1"))["remedy"]
    assert "pools lost" in (await world.refused("DELETE", path))["message"]
    async with world.store.transaction() as tx:
        await tx.pools.delete((await tx.pools.find("lost")).id)
    await world.create("web1", host="h1")
    await world.becomes("web1", VmState.STOPPED, "h3")
    assert "VMs web1" in (await world.refused("DELETE", path))["message"]
    await world.becomes("web1", VmState.STOPPED, "h1")
    async with world.store.transaction() as tx:
        vm = await tx.vms.find("web1")
        await world.rights.first(tx, vm.id, HostName("h3"))
    assert "VMs web1" in (await world.refused("DELETE", path))["message"]
    async with world.store.transaction() as tx:
        await world.rights.forget(tx, vm.id)
        await tx.images.update_status((await tx.images.find("debian")).id, hosts=["h1", "h3"])
    await world.ok("DELETE", path, status=204)
    assert (await world.refused("GET", path))["field"] == "host"
    assert (await world.ok("GET", "/v1/images/debian"))["status"]["hosts"] == ["h1"]


async def test_networks(world: World) -> None:
    spec = {"bridge": "br-lan", "subnet": "10.77.0.0/24", "range_start": "10.77.0.200"}
    made = await world.ok("POST", "/v1/networks", {"name": "two", "spec": spec}, status=201)
    assert made["status"]["addresses_total"] == 55
    error = await world.refused("POST", "/v1/networks", {"name": "three", "spec": {**spec, "range_start": None}})
    assert (error["status"], error["field"]) == (409, "spec.range_start")
    error = await world.refused("POST", "/v1/networks", {"name": "x", "spec": {**spec, "gateway": "10.9.0.1"}})
    assert (error["field"], error["value"]) == ("spec.gateway", "10.9.0.1")
    assert (await world.refused("POST", "/v1/networks", {"name": "two", "spec": spec}))["field"] == "name"
    await world.create("web1", vnics=[{"network": "lan"}])
    assert (await world.refused("DELETE", "/v1/networks/lan"))["field"] == "network"
    assert (await world.http.delete("/v1/networks/two")).status_code == 204


async def test_uplinks(world: World) -> None:
    assert (await world.refused("POST", "/v1/hosts/h3/uplink", {"uplink": "eth0"}))["status"] == 503
    assert (await world.refused("POST", "/v1/hosts/h1/uplink", {"uplink": "eth 0"}))["field"] == "uplink"
    assert (await world.refused("POST", "/v1/hosts/h1/uplink/confirm"))["status"] == 409
    job = await world.done("POST", "/v1/hosts/h1/uplink", {"uplink": "eth0"})
    assert (job.params["bridge"], job.params["confirm_within"]) == ("br-lan", 60.0)
    await world.done("POST", "/v1/hosts/h1/uplink/confirm")


async def test_a_fault_of_ours_is_an_error_too(world: World) -> None:
    async with world.store.transaction() as tx:
        from sqlalchemy import text

        await tx.connection.execute(text("DROP TABLE labels"))
        await tx.connection.execute(text("DROP TABLE jobs"))
    error = await world.refused("GET", "/v1/jobs")
    assert (error["status"], error["code"]) == (500, "internal")


async def test_the_token_file(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "serai.db")
    file = tmp_path / "run" / "token"
    auth = await prepare(store, file)
    token = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert auth.check(f"Bearer {token}") == "admin"
    assert (await prepare(store, file)).check(f"bearer {token}") == "admin"
    assert token.encode() not in (tmp_path / "serai.db").read_bytes()
    file.chmod(0o644)
    with pytest.raises(InvalidError, match="chmod 600"):
        await prepare(store, file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(InvalidError, match="no token"):
        await prepare(store, file)
    await store.close()


async def test_a_disk_image_gives_its_size(world: World) -> None:
    await world.image("big", ImageKind.DISK)
    vm = await world.create("web1", image="big", disks=[{"pool": "shared0"}])
    assert vm.spec.disks[0].size == 2 << 30
    await world.becomes("web1", VmState.RUNNING)
