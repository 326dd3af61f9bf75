"""When hosts spoke, and what their silence means."""

from __future__ import annotations

from datetime import datetime

from tests.unit.controller.kit import Kit

from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.vm import HOST_SILENT, VmState


async def test_a_silent_host_is_offline_and_its_vms_are_not_dead(kit: Kit) -> None:
    await kit.host("h1")
    vm = await kit.vm()

    async def state() -> HostState:
        async with kit.store.read() as view:
            return (await view.hosts.find("h1")).status.state

    await kit.advance(13)
    assert await state() is HostState.ONLINE
    before = kit.store.bell.newest
    await kit.advance(4, lambda: kit.store.bell.newest > before)
    assert await state() is HostState.OFFLINE
    status = await kit.status(vm)
    assert (status.state, [one.type for one in status.conditions]) == (VmState.RUNNING, [HOST_SILENT])
    await kit.full_report("h1", vms=[kit.said(vm)])
    assert await state() is HostState.ONLINE
    assert (await kit.status(vm)).conditions == []


async def test_when_a_host_spoke_last_is_known_and_written_only_at_its_silence(kit: Kit) -> None:
    await kit.host("h1")

    async def stored() -> datetime | None:
        async with kit.store.read() as view:
            return (await view.hosts.find("h1")).status.seen

    joined = await stored()
    await kit.advance(5)
    last = kit.clock.now()
    await kit.full_report("h1")
    assert (kit.presence.heard(HostName("h1")), await stored()) == (last, joined)
    assert kit.presence.heard(HostName("h9")) is None
    before = kit.store.bell.newest
    await kit.advance(17, lambda: kit.store.bell.newest > before)
    assert (kit.presence.heard(HostName("h1")), await stored()) == (last, last)
