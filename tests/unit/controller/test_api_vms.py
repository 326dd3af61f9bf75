"""VMs over the API: what a creation resolves, and every refusal with field, value and remedy."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.controller.conftest import GIB, World, ended

from serai.controller.jobs.workflow import AnyContext, Step
from serai.controller.workflows import WORKFLOWS
from serai.schema.job import JobState
from serai.schema.resource import Condition
from serai.schema.vm import VmState


async def test_a_creation_leaves_nothing_to_decide(world: World) -> None:
    body = {
        "name": "web1",
        "labels": {"tier": "web"},
        "spec": {
            "image": "debian",
            "cpus": 2,
            "memory": "768M",
            "disks": [{"pool": "shared0", "size": "4G"}],
            "vnics": [{"network": "lan"}, {"network": "lan", "ip": "10.77.0.200"}],
            "cloud_init": {"user_data": "#cloud-config\npassword: hunter2"},
        },
    }
    answer = await world.http.post("/v1/vms", json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["target"], job["requested_by"]) == ("vm.create", "vm/web1", "admin")
    vm = await world.ok("GET", "/v1/vms/web1")
    assert job["target_id"] == job["params"]["vm"] == vm["id"]
    assert "hunter2" not in answer.text
    assert vm["generation"] == 1
    assert vm["spec"]["machine_type"] is None
    assert vm["spec"]["disks"] == [{"pool": "shared0", "size": 4 * GIB, "volume": "web1-disk0", "keep": False}]
    assert [vnic["ip"] for vnic in vm["spec"]["vnics"]] == ["10.77.0.100", "10.77.0.200"]
    assert all(vnic["mac"].startswith("52:54:00:") for vnic in vm["spec"]["vnics"])
    assert vm["status"]["addresses"] == ["10.77.0.100", "10.77.0.200"]
    volume = await world.ok("GET", "/v1/volumes/web1-disk0")
    assert volume["spec"] == {"pool": "shared0", "size": 4 * GIB, "image": "debian"}
    assert volume["status"]["vm"] == "web1"
    assert (await world.ok("GET", "/v1/vms?label=tier=web"))["items"][0]["name"] == "web1"
    assert (await world.ok("GET", "/v1/vms?label=tier=db"))["items"] == []
    assert (await world.ok("GET", "/v1/networks/lan"))["status"]["addresses_used"] == 2
    assert (await world.ok("GET", f"/v1/jobs/{job['id']}"))["kind"] == "vm.create"


GOOD: dict[str, Any] = {"image": "tiny", "memory": "256M"}
DISK = {"pool": "shared0", "size": "4G"}


BAD: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"image": "none"}, 404, "spec.image", "none"),
    ({"image": "raw"}, 409, "spec.image", "raw"),
    ({"image": None}, 422, "spec.image", None),
    ({"image": "debian"}, 422, "spec.disks", None),
    ({"image": "debian", "disks": [{**DISK, "size": "1G"}]}, 422, "spec.disks[0].size", "1G"),
    ({"memory": "1T"}, 422, "spec.memory", "1T"),
    ({"memory": "lots"}, 422, "spec.memory", "lots"),
    ({"memory": "1M"}, 422, "spec.memory", "1M"),
    ({"memory": "9" * 400}, 422, "spec.memory", "9" * 120 + "…"),
    ({"memory": "\u0663G"}, 422, "spec.memory", "\u0663G"),
    ({"cmdline": "a\0b"}, 422, "spec.cmdline", r"'a\x00b'"),
    ({"cmdline": "a" * 2049}, 422, "spec.cmdline", "a" * 120 + "…"),
    ({"cloud_init": {"ssh_keys": ["k\0"]}}, 422, "spec.cloud_init.ssh_keys[0]", r"'k\x00'"),
    ({"cloud_init": {"ssh_keys": ["ssh-rsa AAAA", "-rf"]}}, 422, "spec.cloud_init.ssh_keys[1]", "'-rf'"),
    ({"cloud_init": {"ssh_keys": ["ssh-rsa AAAA\nx"]}}, 422, "spec.cloud_init.ssh_keys[0]", r"'ssh-rsa AAAA\nx'"),
    ({"disks": [{"pool": "shared0", "size": 513}]}, 422, "spec.disks[0].size", "513"),
    ({"cpus": 0}, 422, "spec.cpus", "0"),
    ({"colour": "red"}, 422, "spec.colour", "red"),
    ({"host": "h9"}, 404, "spec.host", "h9"),
    ({"host": "h3"}, 503, "spec.host", "h3"),
    ({"disks": [{"pool": "none", "size": "1G"}]}, 404, "spec.disks[0].pool", "none"),
    ({"disks": [{"pool": "lost", "size": "1G"}]}, 503, "spec.disks[0].pool", "h3"),
    ({"disks": [DISK, {"pool": "shared0", "size": "60G"}]}, 409, "spec.disks[1].size", "60G"),
    ({"disks": [{"pool": "shared0"}]}, 422, "spec.disks[0].size", None),
    ({"disks": [{"size": "1G"}]}, 422, "spec.disks[0].pool", None),
    ({"disks": [{"volume": "none"}]}, 404, "spec.disks[0].volume", "none"),
    ({"host": "h1", "disks": [{"pool": "local2", "size": "1G"}]}, 409, "spec.host", "h1"),
    ({"vnics": [{"network": "wan"}]}, 404, "spec.vnics[0].network", "wan"),
    ({"vnics": [{"network": "lan"}] * 4}, 409, "spec.vnics[3].network", "lan"),
    ({"vnics": [{"network": "lan", "ip": "10.9.9.9"}]}, 422, "spec.vnics[0].ip", "10.9.9.9"),
    ({"vnics": [{"network": "lan", "ip": "10.77.0.1"}]}, 409, "spec.vnics[0].ip", "10.77.0.1"),
    ({"vnics": [{"network": "lan", "mac": "01:54:00:00:00:01"}]}, 422, "spec.vnics[0].mac", "01:54:00:00:00:01"),
    ({"vnics": [{"network": "lan", "mac": "x"}]}, 422, "spec.vnics[0].mac", "x"),
    ({"cloud_init": {"ssh_keys": ["ssh-ed25519 A"]}}, 422, "spec.cloud_init", "tiny"),
    ({"cloud_init": {"user_data": "foo: [unclosed"}}, 422, "spec.cloud_init.user_data", "line 1"),
]
"""What is wrong, and the status, field and value that the refusal names."""


async def test_bad_specs_are_refused_and_change_nothing(world: World, subtests: pytest.Subtests) -> None:
    for spec, status, field, value in BAD:
        with subtests.test(spec=spec):
            error = await world.refused("POST", "/v1/vms", {"name": "web1", "spec": {**GOOD, **spec}})
            assert (error["status"], error["field"], error["value"]) == (status, field, value), error
    assert (await world.ok("GET", "/v1/vms"))["items"] == []
    assert (await world.ok("GET", "/v1/volumes"))["items"] == []


async def test_names_and_bodies(world: World) -> None:
    await world.create("web1")
    error = await world.refused("POST", "/v1/vms", {"name": "web1", "spec": GOOD})
    assert (error["status"], error["field"], error["value"]) == (409, "name", "web1")
    error = await world.refused("POST", "/v1/vms", {"name": "Web_1", "spec": GOOD})
    assert (error["field"], error["value"]) == ("name", "Web_1")
    error = await world.refused("POST", "/v1/vms", {"spec": GOOD})
    assert (error["field"], error["value"]) == ("name", None)
    wrong: Any
    for wrong in ([], "x", 5, None):
        error = await world.refused("POST", "/v1/vms", wrong)
        assert (error["field"], error["status"]) == ("body", 422), error
    error = await world.refused("POST", "/v1/vms", {"name": "x", "spec": 5})
    assert (error["field"], error["message"]) == ("spec", "this has no fields")
    error = await world.refused("PATCH", "/v1/vms/web1", {"cloud_init": {"ssh_keys": ["a\nb"]}})
    assert error["field"] == "cloud_init.ssh_keys[0]"
    answer = await world.http.post("/v1/vms", content="{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "not JSON" in answer.json()["error"]["message"]
    error = await world.refused("GET", "/v1/vms?colour=red")
    assert (error["field"], error["value"]) == ("colour", "red")
    assert (await world.refused("GET", "/v1/vms?limit=0"))["field"] == "limit"
    assert (await world.refused("GET", "/v1/vms?state=odd"))["field"] == "state"
    assert (await world.refused("GET", "/v1/vms/none"))["value"] == "none"
    assert (await world.refused("GET", "/v1/nothing"))["status"] == 404


async def test_memory_that_others_hold_is_not_promised_again(world: World) -> None:
    for name, host in (("a", "h1"), ("b", "h2")):
        await world.create(name, memory="6G")
        await world.becomes(name, VmState.RUNNING, host)
    error = await world.refused("POST", "/v1/vms", {"name": "c", "spec": {**GOOD, "memory": "4G"}})
    assert (error["status"], error["code"], error["field"]) == (409, "capacity", "spec.memory")
    assert "h1 has 2G of memory free" in error["message"]
    assert "h3 is offline" in error["message"]
    hosts = (await world.ok("GET", "/v1/hosts"))["items"]
    assert [host["status"]["memory_committed"] for host in hosts] == [6 * GIB, 6 * GIB, 0]


async def test_moves_that_cannot_be(world: World) -> None:
    await world.create("web1")
    for state, to, status, field in (
        (VmState.RUNNING, "h1", 409, "to"),
        (VmState.RUNNING, "h3", 503, "to"),
        (VmState.RUNNING, "h9", 404, "to"),
        (VmState.STOPPED, "h2", 409, "state"),
        (VmState.PAUSED, "h2", 409, "state"),
    ):
        await world.becomes("web1", state)
        error = await world.refused("POST", "/v1/vms/web1/migrate", {"to": to})
        assert (error["status"], error["field"]) == (status, field)


async def test_a_vm_that_waits_for_a_restart_does_not_move(world: World) -> None:
    vm = await world.create("web1")
    await world.becomes("web1", VmState.RUNNING)
    remark = Condition(type="pending-restart", message="memory: no slot is left")
    async with world.store.transaction() as tx:
        await tx.vms.update_status(vm.id, conditions=[remark], running_generation=vm.generation - 1)
    error = await world.refused("POST", "/v1/vms/web1/migrate", {"to": "h2"})
    assert (error["status"], error["field"], error["value"]) == (409, "state", "pending-restart")
    assert remark.message in error["message"]
    assert "serai vm restart web1" in error["remedy"]
    # Its host has restarted it since: the remark is a past one.
    async with world.store.transaction() as tx:
        await tx.vms.update_status(vm.id, running_generation=vm.generation)
    await world.ok("POST", "/v1/vms/web1/migrate", {"to": "h2"}, status=202)


async def test_a_vm_on_the_move_does_not_move_twice(world: World) -> None:
    await world.create("web1")
    await world.becomes("web1", VmState.RUNNING)
    job = await hold(world, "vm.migrate", "/v1/vms/web1/migrate", {"to": "h2"})
    error = await world.refused("POST", "/v1/vms/web1/migrate", {"to": "h2"})
    assert (error["status"], error["value"]) == (409, job["id"])
    assert "on the move" in error["message"]
    error = await world.refused("PATCH", "/v1/vms/web1", {"cpus": 2})
    assert "on the move" in error["message"]
    await world.ok("POST", f"/v1/jobs/{job['id']}/cancel")
    assert (await ended(world.store, job["id"])).state is JobState.CANCELLED


async def hold(world: World, kind: str, path: str, body: Any) -> Any:
    """A job that stays at work until it is cancelled."""

    begun = asyncio.Event()

    async def wait(ctx: AnyContext) -> None:
        begun.set()
        await ctx.cancelled.wait()
        ctx.check_cancel()

    held = replace(WORKFLOWS[kind], steps=(Step("do", wait),))
    world.engine._workflows[kind] = held  # type: ignore[index]  # the fixture's dict
    job = await world.ok("POST", path, body, status=202)
    await begun.wait()
    return job


async def test_a_local_disk_keeps_a_vm_where_it_is(world: World) -> None:
    await world.create("web1", disks=[{"pool": "local2", "size": "1G"}])
    await world.becomes("web1", VmState.RUNNING, "h2")
    error = await world.refused("POST", "/v1/vms/web1/migrate", {"to": "h1"})
    assert "local to h2" in error["message"]
    assert (await world.refused("POST", "/v1/vms/web1/migrate"))["field"] == "to"


async def test_deleting(world: World) -> None:
    await world.create("web1")
    await world.becomes("web1", VmState.RUNNING)
    error = await world.refused("DELETE", "/v1/vms/web1")
    assert (error["status"], error["field"]) == (409, "force")
    job = await world.done("DELETE", "/v1/vms/web1?force=true")
    assert job.params["force"] is True


async def test_starting_and_stopping_change_what_is_wanted(world: World) -> None:
    await world.create("web1", running=False)
    await world.becomes("web1", VmState.STOPPED)
    await world.done("POST", "/v1/vms/web1/start")
    vm = await world.ok("GET", "/v1/vms/web1")
    assert (vm["spec"]["running"], vm["generation"]) == (True, 2)
    await world.becomes("web1", VmState.RUNNING)
    assert (await world.refused("POST", "/v1/vms/web1/start"))["field"] == "state"
    job = await world.done("POST", "/v1/vms/web1/stop", {"timeout": 5})
    assert (job.params["timeout"], job.params["force"]) == (5.0, False)
    await world.done("POST", "/v1/vms/web1/stop")
    assert (await world.ok("GET", "/v1/vms/web1"))["spec"]["running"] is False
    await world.becomes("web1", VmState.STOPPED)
    for verb in ("pause", "resume", "reset"):
        assert (await world.refused("POST", f"/v1/vms/web1/{verb}"))["status"] == 409


async def test_a_restart_is_for_one_that_is_up_and_can_start_again(world: World) -> None:
    await world.create("web1")
    for state in (VmState.STOPPED, VmState.CRASHED):
        await world.becomes("web1", state)
        error = await world.refused("POST", "/v1/vms/web1/restart")
        assert (error["status"], error["field"], error["value"]) == (409, "state", state)
        assert "serai vm start web1" in error["remedy"]
    await world.becomes("web1", VmState.MIGRATING)
    assert (await world.refused("POST", "/v1/vms/web1/restart"))["field"] == "state"
    await world.becomes("web1", VmState.RUNNING)
    job = await world.done("POST", "/v1/vms/web1/restart", {"timeout": 5})
    assert (job.params["timeout"], job.params["force"]) == (5.0, False)
    held = await hold(world, "vm.restart", "/v1/vms/web1/restart", None)
    assert (await world.refused("POST", "/v1/vms/web1/restart"))["value"] == held["id"]
    await world.becomes("web1", VmState.STOPPED)
    assert (await world.refused("POST", "/v1/vms/web1/start"))["value"] == held["id"]
    await world.ok("POST", f"/v1/jobs/{held['id']}/cancel")
    await ended(world.store, held["id"])
    # It would not find the memory again: it is not stopped.
    await world.becomes("web1", VmState.RUNNING)
    async with world.store.transaction() as tx:
        vm = await tx.vms.find("web1")
        await tx.vms.set_spec(vm.id, vm.spec.model_copy(update={"memory": 64 * GIB}))
    assert (await world.refused("POST", "/v1/vms/web1/restart"))["field"] == "spec.memory"


async def test_user_data_is_in_the_spec_and_nowhere_else(world: World) -> None:
    """It may hold passwords, and jobs and events are shown to everyone who may list them."""
    await world.create(
        "web1", image="debian", disks=[DISK], cloud_init={"user_data": "#cloud-config\npassword: hunter2"}
    )
    job = await world.done("PATCH", "/v1/vms/web1", {"cloud_init": {"user_data": "#cloud-config\npassword: swordfish"}})
    assert job.params["changes"]["cloud_init"]["user_data"] == "***"
    error = await world.refused("PATCH", "/v1/vms/web1", {"cloud_init": {"user_data": "swordfish" * 20_000}})
    assert error["field"] == "cloud_init.user_data"
    async with world.store.read() as view:
        events = await view.events.after(0, 100)
    told = [await world.ok("GET", "/v1/jobs"), error, events]
    assert "hunter2" not in str(told)
    assert "swordfish" not in str(told)
    assert "swordfish" in (await world.ok("GET", "/v1/vms/web1"))["spec"]["cloud_init"]["user_data"]


async def test_editing(world: World) -> None:
    await world.create("web1", disks=[DISK], vnics=[{"network": "lan"}])
    before = (await world.ok("GET", "/v1/vms/web1"))["spec"]
    disks, vnics = before["disks"], before["vnics"]
    job = await world.done(
        "PATCH",
        "/v1/vms/web1",
        {
            "cpus": 2,
            "disks": [*disks, {"pool": "shared0", "size": "1G"}],
            "vnics": [*vnics, {"network": "lan"}],
            "labels": {"a": "b"},
        },
    )
    assert sorted(job.params["changes"]) == ["cpus", "disks", "labels", "vnics"]
    now = await world.ok("GET", "/v1/vms/web1")
    assert (now["generation"], now["spec"]["cpus"], now["labels"]) == (2, 2, {"a": "b"})
    assert [disk["volume"] for disk in now["spec"]["disks"]] == ["web1-disk0", "web1-disk1"]
    assert now["spec"]["vnics"][0] == vnics[0]
    assert now["spec"]["vnics"][1]["ip"] == "10.77.0.101"
    await world.done("PATCH", "/v1/vms/web1", {"vnics": now["spec"]["vnics"][1:]})
    assert (await world.ok("GET", "/v1/networks/lan"))["status"]["addresses_used"] == 1
    assert (await world.refused("PATCH", "/v1/vms/web1", {"memory": "1T"}))["field"] == "memory"
    error = await world.refused("PATCH", "/v1/vms/web1", {"disks": [{**disks[0], "size": "8G"}]})
    assert error["field"] == "disks[0].size"
    assert "serai volume resize web1-disk0 SIZE" in error["remedy"]
    await world.done("PATCH", "/v1/vms/web1", {"description": "x"})
    assert (await world.ok("GET", "/v1/vms/web1"))["generation"] == 3


async def test_an_edit_has_the_bounds_of_a_creation(world: World) -> None:
    """What is stored can be read again: else no list with this VM in it could be shown."""
    await world.network("wide", "10.77.0.110", "10.77.0.200")
    await world.create("web1")
    for field, item in (("vnics", {"network": "wide"}), ("disks", {"pool": "shared0", "size": "1M"})):
        assert (await world.refused("PATCH", "/v1/vms/web1", {field: [item] * 16}))["field"] == field
    assert (await world.ok("GET", "/v1/vms"))["items"][0]["spec"]["vnics"] == []


async def test_a_stop_waits_for_a_day_at_most(world: World) -> None:
    await world.create("web1")
    await world.becomes("web1", VmState.RUNNING)
    content = '{"timeout": 1e400}'
    answer = await world.http.post("/v1/vms/web1/stop", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "timeout")


async def test_a_new_name_is_the_vms_alone(world: World) -> None:
    await world.create("web1", disks=[DISK])
    await world.create("web2")
    assert (await world.refused("PATCH", "/v1/vms/web1", {"rename": "web2"}))["field"] == "rename"
    await world.done("PATCH", "/v1/vms/web1", {"rename": "web3"})
    vm = await world.ok("GET", "/v1/vms/web3")
    assert vm["spec"]["disks"][0]["volume"] == "web1-disk0"
    (volume,) = (await world.ok("GET", "/v1/volumes?vm=web3"))["items"]
    assert (volume["name"], volume["status"]["vm"], volume["status"]["owner"]) == ("web1-disk0", "web3", "web3")
    await world.create("web1", disks=[DISK])
    assert (await world.ok("GET", "/v1/vms/web1"))["spec"]["disks"][0]["volume"] == "web1-disk1"


async def test_cloning(world: World) -> None:
    await world.create("base", disks=[DISK], vnics=[{"network": "lan"}])
    await world.becomes("base", VmState.RUNNING)
    assert (await world.refused("POST", "/v1/vms/base/clone", {"name": "web1"}))["field"] == "state"
    await world.becomes("base", VmState.STOPPED)
    assert (await world.refused("POST", "/v1/vms/base/clone", {"name": "base"}))["field"] == "name"
    job = await world.done("POST", "/v1/vms/base/clone", {"name": "web1"})
    vm = await world.ok("GET", "/v1/vms/web1")
    assert job.params["clone"] == vm["id"]
    assert vm["spec"]["running"] is False
    assert vm["spec"]["disks"][0]["volume"] == "web1-disk0"
    assert vm["spec"]["vnics"][0]["ip"] == "10.77.0.101"


async def test_a_template_is_not_started(world: World) -> None:
    await world.create("base", template=True)
    assert (await world.ok("GET", "/v1/vms/base"))["spec"]["running"] is False
    assert (await world.refused("POST", "/v1/vms/base/start"))["field"] == "spec.template"


async def test_an_existing_volume_is_one_vms(world: World) -> None:
    await world.create("a", disks=[DISK])
    error = await world.refused("POST", "/v1/vms", {"name": "b", "spec": {**GOOD, "disks": [{"volume": "a-disk0"}]}})
    assert (error["status"], error["field"]) == (409, "spec.disks[0].volume")


async def test_lists_by_what_is_not_there_are_refused(world: World) -> None:
    await world.create("web1", disks=[DISK])
    for path, field in (
        ("/v1/vms?host=h9", "host"),
        ("/v1/volumes?vm=nosuch", "vm"),
        ("/v1/volumes?pool=nosuch", "pool"),
    ):
        error = await world.refused("GET", path)
        assert (error["status"], error["field"]) == (404, field)
    found = (await world.ok("GET", "/v1/volumes?vm=web1&pool=shared0"))["items"]
    assert [volume["name"] for volume in found] == ["web1-disk0"]
