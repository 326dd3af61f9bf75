"""What is asked of a VM, while a host that is needed for it does not answer, is refused at once."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.controller.conftest import World

from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.vm import VmState


async def goes_offline(world: World, name: str) -> None:
    async with world.store.transaction() as tx:
        host = await tx.hosts.find(name)
        await tx.hosts.update_status(host.id, state=HostState.OFFLINE)


async def on_lost_host(world: World, state: VmState, **spec: Any) -> None:
    """VM web1 on h2, which goes offline."""
    vm = await world.create("web1", **spec)
    async with world.store.transaction() as tx:
        await world.rights.first(tx, vm.id, HostName("h2"))
    await world.becomes("web1", state, "h2")
    await goes_offline(world, "h2")


async def test_a_vm_on_an_offline_host_is_not_asked_anything(world: World, subtests: pytest.Subtests) -> None:
    await on_lost_host(world, VmState.RUNNING, disks=[{"pool": "shared0", "size": "1G"}])
    for method, path, body in (
        ("POST", "/stop", {"timeout": 3}),
        ("POST", "/stop", {"force": True}),
        ("POST", "/restart", None),
        ("POST", "/reset", None),
        ("POST", "/pause", None),
        ("POST", "/migrate", {"to": "h1"}),
        ("POST", "/migrate", None),
        ("PATCH", "", {"cpus": 2}),
        ("DELETE", "?force=true", None),
    ):
        with subtests.test(path=path, body=body):
            error = await world.refused(method, f"/v1/vms/web1{path}", body)
            assert (error["status"], error["field"], error["value"]) == (503, "host", "h2")
            assert "web1 is on host h2, which is offline" in error["message"]
    assert (await world.refused("PATCH", "/v1/volumes/web1-disk0", {"size": "2G"}))["value"] == "h2"
    await world.becomes("web1", VmState.PAUSED, "h2")
    assert (await world.refused("POST", "/v1/vms/web1/resume"))["value"] == "h2"


async def test_a_vm_that_is_down_needs_its_host_only_to_be_deleted(world: World) -> None:
    await on_lost_host(world, VmState.STOPPED)
    await world.done("POST", "/v1/vms/web1/stop")
    await world.done("PATCH", "/v1/vms/web1", {"cpus": 2})
    await world.done("POST", "/v1/vms/web1/clone", {"name": "web2"})
    assert (await world.refused("DELETE", "/v1/vms/web1"))["value"] == "h2"


async def test_disks_out_of_reach_are_neither_copied_nor_deleted(world: World) -> None:
    await world.create("web1", disks=[{"pool": "shared0", "size": "1G"}])
    await world.becomes("web1", VmState.STOPPED, "h2")
    await goes_offline(world, "h1")
    for method, path, body in (("DELETE", "", None), ("POST", "/clone", {"name": "web2"})):
        error = await world.refused(method, f"/v1/vms/web1{path}", body)
        assert (error["status"], error["value"]) == (503, "h1")
        assert "volume web1-disk0 of VM web1 is in pool shared0 on host h1" in error["message"]
