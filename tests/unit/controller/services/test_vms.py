"""The one setter of a VM's state, and what else is written of a VM."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.controller.kit import THEN, Kit

from serai.controller.services import vms
from serai.core.observed import Event
from serai.schema.ids import HostName, VmId
from serai.schema.vm import VmState


async def events_after(kit: Kit, number: int) -> list[dict[str, Any]]:
    async with kit.store.read() as view:
        return [json.loads(text) for _, text in await view.events.after(number, 100)]


async def test_what_was_learned_is_written_dated_and_told(kit: Kit) -> None:
    vm, newest = VmId(await kit.vm()), kit.store.bell.newest
    async with kit.store.transaction() as tx:
        after = await vms.observe(tx, vm, Event.FENCED, "its host h1 was fenced")
    status = await kit.status(vm)
    assert after is not None
    assert after.status == status
    assert (status.state, status.reason, status.since) == (VmState.CRASHED, "its host h1 was fenced", THEN)
    (event,) = await events_after(kit, newest)
    assert (event["kind"], event["message"]) == ("vm.state", "web1 is crashed on h1: its host h1 was fenced")
    assert event["data"] == {"state": "crashed", "host": "h1", "epoch": 1}


async def test_what_tells_nothing_new_writes_nothing(kit: Kit) -> None:
    vm = VmId(await kit.vm())
    before, newest = await kit.status(vm), kit.store.bell.newest
    async with kit.store.transaction() as tx:
        assert await vms.observe(tx, vm, Event.START, "", host=HostName("h2")) is None
    assert await kit.status(vm) == before
    assert kit.store.bell.newest == newest


@pytest.mark.parametrize(("facts", "kinds"), [({"pid": 8}, ["vm.status"]), ({"epoch": 4}, ["vm.state"]), ({}, [])])
async def test_what_people_see_is_told_as_a_state(kit: Kit, facts: dict[str, Any], kinds: list[str]) -> None:
    vm, newest = VmId(await kit.vm()), kit.store.bell.newest
    async with kit.store.transaction() as tx:
        await vms.note(tx, vm, **facts)
    assert [event["kind"] for event in await events_after(kit, newest)] == kinds
    assert (await kit.status(vm)).state is VmState.RUNNING


async def test_a_vm_is_forgotten_once(kit: Kit) -> None:
    vm, newest = VmId(await kit.vm()), kit.store.bell.newest
    for _ in range(2):
        async with kit.store.transaction() as tx:
            await kit.rights.forget(tx, vm)
            await vms.forget(tx, vm)
    assert [event["kind"] for event in await events_after(kit, newest)] == ["vm.deleted"]
