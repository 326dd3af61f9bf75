"""What hosts say: believed by the lease, and written when it is news."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.controller.kit import FACTS, INCARNATION, THEN, Kit

from serai.lib.ids import new_id
from serai.schema.encoding import encode
from serai.schema.errors import (
    InvalidError,
)
from serai.schema.host import HostState
from serai.schema.ids import HostName, PoolId, VmId
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.reports import Introduction
from serai.schema.subjects import Subjects
from serai.schema.vm import VmState
from serai.schema.volume import Pool, PoolSpec, PoolStatus


async def test_a_hello_makes_the_host(kit: Kit) -> None:
    await kit.host("h1")
    async with kit.store.read() as view:
        host = await view.hosts.find("h1")
        events = await view.events.after(0, 10)
    assert (host.status.state, host.status.facts) == (HostState.ONLINE, FACTS)
    assert '"host.joined"' in events[0][1]
    await kit.host("h1")
    async with kit.store.read() as view:
        assert (await view.hosts.find("h1")).id == host.id
        assert len(await view.events.after(0, 10)) == 1


async def test_older_reports_never_overwrite_newer(kit: Kit) -> None:
    vm = await kit.vm()
    assert (await kit.report(vm, sequence=5, state="paused")).state is VmState.PAUSED
    assert (await kit.report(vm, sequence=4, state="crashed")).state is VmState.PAUSED
    assert (await kit.report(vm, sequence=6, epoch=0, state="crashed")).state is VmState.PAUSED
    assert (await kit.report(vm, sequence=7, host="h2", state="crashed")).state is VmState.PAUSED
    assert (await kit.report(vm, sequence=8, epoch=2, host="h2", state="crashed")).state is VmState.PAUSED
    assert (await kit.report(vm, sequence=9, state="defined")).state is VmState.PAUSED
    assert (await kit.report(vm, sequence=10, state="stopped", reason="off")).reason == "off"
    # A later start of the agent counts, though its clock says that it is earlier.
    long_ago = THEN - timedelta(days=365)
    assert (await kit.report(vm, starts=2, sequence=1, state="running", since=long_ago)).state is VmState.RUNNING
    assert (await kit.report(vm, starts=1, sequence=11, state="crashed")).state is VmState.RUNNING


async def test_what_is_known_is_not_written_again(kit: Kit) -> None:
    vm = await kit.vm()
    await kit.report(vm, sequence=1, pid=7)
    newest = kit.store.bell.newest
    for sequence in range(2, 5):
        await kit.report(vm, sequence=sequence, pid=7)
    assert kit.store.bell.newest == newest


async def test_a_destination_that_runs_the_vm_has_committed(kit: Kit) -> None:
    vm = await kit.vm()
    async with kit.store.transaction() as tx:
        await kit.rights.offer(tx, VmId(vm), HostName("h2"), "one")
    assert (await kit.report(vm, host="h2", epoch=2, state="starting")).host == "h1"
    assert (await kit.report(vm, host="h3", epoch=2, state="running")).host == "h1"
    status = await kit.report(vm, host="h2", epoch=2, state="running")
    assert (status.host, status.epoch) == ("h2", 2)
    async with kit.store.read() as view:
        lease = await view.leases.need(VmId(vm))
    assert (lease.host, lease.epoch, lease.offered_to) == ("h2", 2, None)
    assert (await kit.report(vm, host="h1", epoch=1, state="crashed", sequence=99)).state is VmState.RUNNING


@pytest.mark.parametrize(
    ("claim", "offer_id", "host", "offered"),
    [
        (Claim.COMMITTED, "one", "h2", None),
        (Claim.ABANDONED, "one", "h1", None),
        (Claim.ABANDONED, "other", "h1", "h2"),
        (Claim.OFFERED, "one", "h1", "h2"),
    ],
)
async def test_a_hosts_journal_settles_an_offer(
    kit: Kit, claim: Claim, offer_id: str, host: str, offered: str | None
) -> None:
    vm = await kit.vm()
    await kit.host("h2")
    async with kit.store.transaction() as tx:
        await kit.rights.offer(tx, VmId(vm), HostName("h2"), "one")
    await kit.full_report("h2", leases=[LeaseRecord(vm=VmId(vm), epoch=2, claim=claim, offer_id=offer_id)])
    async with kit.store.read() as view:
        lease = await view.leases.need(VmId(vm))
    assert (lease.host, lease.offered_to) == (host, offered)


async def test_a_vm_that_its_host_does_not_list_is_not_shown_as_running(kit: Kit) -> None:
    vm = await kit.vm()
    await kit.host("h1")
    await kit.report(vm, pid=7)
    kit.clock.advance(1)
    await kit.full_report("h1", vms=[kit.said(vm, pid=7)])
    assert (await kit.status(vm)).state is VmState.RUNNING
    await kit.full_report("h1")
    status = await kit.status(vm)
    assert (status.state, status.pid, status.host) == (VmState.UNKNOWN, None, "h1")
    assert "h1 holds its lease" in status.reason
    newest = kit.store.bell.newest
    await kit.full_report("h1")
    assert kit.store.bell.newest == newest
    await kit.full_report("h1", vms=[kit.said(vm, pid=7, sequence=2)])
    status = await kit.status(vm)
    assert (status.state, status.pid, status.reason) == (VmState.RUNNING, 7, "")


async def test_a_vm_whose_qemu_does_not_answer_a_new_agent_is_shown_so(kit: Kit) -> None:
    vm = await kit.vm()
    await kit.host("h1")
    await kit.report(vm, pid=7)
    kit.clock.advance(1)
    await kit.full_report("h1", silent=[vm])
    status = await kit.status(vm)
    assert (status.state, status.pid) == (VmState.UNKNOWN, None)
    assert "its QEMU on h1 does not answer" in status.reason


async def test_an_unlisted_vm_whose_lease_its_host_gave_up_is_stopped(kit: Kit) -> None:
    vm = await kit.vm()
    await kit.host("h1")
    await kit.full_report("h1", leases=[LeaseRecord(vm=VmId(vm), epoch=1, claim=Claim.RELEASED)])
    status = await kit.status(vm)
    assert (status.state, status.reason) == (VmState.STOPPED, "h1 has given it up")


@pytest.mark.parametrize("why", ["it began after the report", "it is on the move", "another host holds its lease"])
async def test_an_absence_that_says_nothing(kit: Kit, why: str) -> None:
    vm = await kit.vm()
    await kit.host("h1")
    if why == "it began after the report":
        await kit.report(vm, since=THEN + timedelta(seconds=1))
    async with kit.store.transaction() as tx:
        if why != "it began after the report":
            await kit.rights.offer(tx, VmId(vm), HostName("h2"), "one")
        if why == "another host holds its lease":
            await kit.rights.commit(tx, VmId(vm), 2, HostName("h2"))
    await kit.full_report("h1")
    assert (await kit.status(vm)).state is VmState.RUNNING


async def test_pools_are_written_when_they_change(kit: Kit) -> None:
    await kit.host("h1")
    async with kit.store.transaction() as tx:
        pool = Pool(
            name="p",
            id=new_id(PoolId),
            generation=1,
            created=tx.now,
            spec=PoolSpec(host=HostName("h1")),
            status=PoolStatus(),
        )
        await tx.pools.insert(pool)
    await kit.full_report("h1", pools={pool.id: PoolStatus(state="ready", total=100 << 30, free=50 << 30)})
    newest = kit.store.bell.newest
    await kit.full_report("h1", pools={pool.id: PoolStatus(state="ready", total=100 << 30, free=(50 << 30) - 1)})
    async with kit.store.read() as view:
        assert (await view.pools.get(pool.id)).status.free == 50 << 30
    assert kit.store.bell.newest == newest


async def test_a_hello_or_report_on_another_hosts_subject_is_refused(kit: Kit) -> None:
    """Who may publish on a subject is the bus's matter; that the words fit it is the controller's."""
    await kit.host("h1")
    vm = await kit.vm("h1")
    forged = encode(kit.said(vm, state="crashed", sequence=9))
    for subject, words in (
        (Subjects.vm_report("h2", vm), forged),
        (
            Subjects.hello("h2"),
            encode(
                Introduction(host=HostName("h1"), incarnation=INCARNATION, facts=FACTS.model_copy(update={"cpus": 1}))
            ),
        ),
    ):
        with pytest.raises(InvalidError, match="another host's"):
            await kit.bus.request(subject, words, timeout=5)
    assert (await kit.status(vm)).state is VmState.RUNNING
    async with kit.store.read() as view:
        facts = (await view.hosts.find("h1")).status.facts
    assert facts is not None and facts.cpus == FACTS.cpus


async def test_a_hosts_bridges_are_kept_and_written_when_they_change(kit: Kit) -> None:
    await kit.host("h1")

    async def stored() -> list[str] | None:
        async with kit.store.read() as view:
            return (await view.hosts.find("h1")).status.bridges

    assert await stored() is None
    await kit.full_report("h1", bridges=["br-lan"])
    assert await stored() == ["br-lan"]
    before = kit.store.bell.newest
    await kit.full_report("h1", bridges=["br-lan"])
    await kit.full_report("h1")
    await kit.host("h1")
    assert (await stored(), kit.store.bell.newest) == (["br-lan"], before)
    await kit.full_report("h1", bridges=[])
    assert await stored() == []
