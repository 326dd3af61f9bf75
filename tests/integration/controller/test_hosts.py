"""What hosts report, as the API shows it and placement goes by it."""

from __future__ import annotations

from datetime import datetime

import pytest
from tests.integration.controller.conftest import INCARNATION, World

from serai.lib.clock import SystemClock
from serai.schema.commands.uplink import UPLINK_TAKE, UplinkTaken
from serai.schema.encoding import encode
from serai.schema.errors import ConflictError
from serai.schema.ids import HostName
from serai.schema.job import JobState
from serai.schema.network import NetworkStatus
from serai.schema.reports import HostReport
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport, VmState


async def test_a_host_is_shown_with_when_it_spoke_last(world: World) -> None:
    async def seen() -> list[datetime]:
        shown = await world.client.call("host.show", "h1")
        edited = await world.client.call("host.edit", "h1", {"description": "x"})
        (listed,) = [host for host in (await world.client.call("host.list")).items if host.name == "h1"]
        return [host.status.seen for host in (shown, edited, listed)]

    before = await seen()
    report = HostReport(host=HostName("h1"), incarnation=INCARNATION, time=SystemClock().now())
    await world.agents.bus.request(Subjects.host_report("h1"), encode(report), timeout=5)
    after = await seen()
    assert len(set(before)) == len(set(after)) == 1
    assert after[0] > before[0]


async def test_who_has_a_networks_bridge_is_shown_and_placement_goes_by_it(world: World) -> None:
    async def says(host: str, *bridges: str) -> None:
        now = SystemClock().now()
        report = HostReport(host=HostName(host), incarnation=INCARNATION, time=now, bridges=list(bridges))
        await world.agents.bus.request(Subjects.host_report(host), encode(report), timeout=5)

    async def shown() -> NetworkStatus:
        found: NetworkStatus = (await world.client.call("network.show", "n2")).status
        return found

    made = await world.client.call(
        "network.create", None, {"name": "n2", "spec": {"bridge": "br-n2", "subnet": "10.78.0.0/24"}}
    )
    assert (made.status.state, made.status.hosts, made.status.without) == ("ready", [], [])
    await says("h1", "br-lan")
    await says("h2", "br-lan")
    status = await shown()
    assert (status.state, status.hosts, status.without) == ("missing", [], ["h1", "h2"])
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        await world.create(vnics=[{"network": "n2"}])
    # It may be defined: its bridge may be there once it starts.
    job = await world.create(vnics=[{"network": "n2"}], running=False)
    assert (job.state, (await world.vm("web1")).status.host) == (JobState.DONE, "h1")
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        await world.client.call("vm.start", "web1")
    world.agents.answers[UPLINK_TAKE] = UplinkTaken(token="t", deadline=SystemClock().now())
    assert (await world.do("host.take", "h2", {"uplink": "eth2", "bridge": "br-n2"})).state is JobState.DONE
    status = await shown()
    assert (status.state, status.hosts, status.without) == ("ready", ["h2"], ["h1"])
    assert (await world.do("vm.start", "web1")).state is JobState.DONE
    vm = await world.vm("web1")
    assert vm.status.host == "h2"
    assert vm.status.placement.startswith("h1, where it was, has no bridge br-n2 (network n2); the only host")
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        await world.client.call("vm.migrate", "web1", {"to": "h1"})


async def test_an_answer_that_is_older_than_a_report_changes_nothing(world: World) -> None:
    """As when an answer is repeated, and the VM has crashed since."""
    await world.create()
    vm = await world.vm("web1")
    now = SystemClock().now()
    crashed = VmReport(vm=vm.id, host=HostName("h1"), epoch=1, state=VmState.CRASHED, since=now, sequence=100)
    await world.agents.bus.request(Subjects.vm_report("h1", vm.id), encode(crashed), timeout=5)
    world.agents.sequence = 99
    assert (await world.do("vm.stop", "web1", {"force": True})).state is JobState.DONE
    assert (await world.vm("web1")).status.state is VmState.CRASHED
    world.agents.sequence = 101
    await world.do("vm.stop", "web1", {"force": True})
    assert (await world.vm("web1")).status.state is VmState.STOPPED
