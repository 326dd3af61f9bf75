"""The gateway on the in-process bus: commands asked until answered, reports believed by the lease, silence, tickets."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from tests.unit.controller.gateway_kit import FACTS, OPEN, THEN, Kit

from serai.controller.commands import VmTarget
from serai.lib.bus import Message
from serai.lib.ids import new_id, new_secret
from serai.schema.commands.envelope import CommandProgress, Reply, Request
from serai.schema.commands.pool import OpenPool
from serai.schema.encoding import encode, to_dict
from serai.schema.errors import (
    CancelledByUserError,
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    SeraiError,
    UnauthorizedError,
    UnavailableError,
)
from serai.schema.host import HostState
from serai.schema.ids import HostName, PoolId, VmId
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.reports import Hello
from serai.schema.subjects import Subjects
from serai.schema.ticket import Purpose, RedeemTicket, Ticket
from serai.schema.vm import VmReport, VmState
from serai.schema.volume import Pool, PoolSpec, PoolStatus


async def test_a_command_is_asked_until_it_is_done(kit: Kit) -> None:
    done = Reply(state="done", result={"state": "ready", "total": 5})
    await kit.answers(Subjects.host_command("h1"), Reply(state="running"), Reply(state="running"), done)
    status = await kit.send(generation=3, job="j")
    assert (status.state, status.total) == ("ready", 5)
    assert len({request.id for request in kit.requests}) == 1
    assert len(kit.requests) == 3
    assert (kit.requests[0].generation, kit.requests[0].job) == (3, "j")
    assert OpenPool.model_validate(kit.requests[0].body) == OPEN


async def test_a_failure_comes_back_as_the_error_it_was(kit: Kit) -> None:
    error = CapacityError("no space", field="size", value="4G", remedy="Less.")
    await kit.answers(Subjects.host_command("h1"), Reply(state="failed", error=error.info))
    with pytest.raises(CapacityError) as caught:
        await kit.send()
    assert caught.value.info == error.info


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b'{"state": "done", "result": {"free": "much"}}', "was not understood: Input should be"),
        (b'{"state": "done"}', "was not understood: Input should be"),
        (b'{"stat": "done"}', "was not understood: Field required"),
        (b'{"state": "failed"}', "failed without a reason"),
    ],
)
async def test_a_reply_that_cannot_be_used_is_named(kit: Kit, words: bytes, why: str) -> None:
    async def answer(_: Message) -> bytes:
        return words

    await kit.bus.subscribe(Subjects.host_command("h1"), answer)
    with pytest.raises(SeraiError, match=why) as caught:
        await kit.send()
    assert "pool.open" in str(caught.value)


async def test_silence_is_waited_out_and_named(kit: Kit) -> None:
    waits: list[str] = []
    sending = asyncio.create_task(kit.send(waits=waits.append))
    await kit.advance(5, lambda: bool(waits))
    assert waits[0] == "host h1 to answer pool.open"
    await kit.answers(Subjects.host_command("h1"), Reply(state="done", result={"state": "ready"}))
    await kit.advance(2, sending.done)
    assert (await sending).state == "ready"
    assert waits[-1] == ""


async def test_silence_ends_with_patience(kit: Kit) -> None:
    sending = asyncio.create_task(kit.send(patience=5))
    await kit.advance(5, sending.done)
    with pytest.raises(UnavailableError, match=r"host h1 did not answer pool\.open") as caught:
        await sending
    assert (caught.value.info.field, caught.value.info.value) == ("host", "h1")


async def test_a_cancel_ends_the_waiting(kit: Kit) -> None:
    cancelled = asyncio.Event()

    def check() -> None:
        if cancelled.is_set():
            raise CancelledByUserError("cancelled")

    sending = asyncio.create_task(kit.send(patience=float("inf"), check=check))
    await kit.advance(3)
    cancelled.set()
    await kit.advance(1, sending.done)
    with pytest.raises(CancelledByUserError):
        await sending


async def test_progress_and_vm_commands_find_their_way(kit: Kit) -> None:
    seen: list[CommandProgress] = []
    waits: list[str] = []
    asked: list[str] = []
    vm = await kit.vm("h2")
    report = VmReport(vm=VmId(vm), host=HostName("h2"), epoch=1, state=VmState.PAUSED, since=THEN)

    async def answer(message: Message) -> bytes:
        request = Request.model_validate_json(message.payload)
        for host, of in (("h1", request.id), ("h2", new_id()), ("h2", request.id)):
            word = CommandProgress(request=of, phase=f"of {host}", fraction=0.5, waits_for=f"what {host} waits for")
            await kit.bus.publish(Subjects.progress(host, request.id), encode(word))
        asked.append(request.id)
        while len(seen) < len(asked):
            await asyncio.sleep(0.001)
        done = Reply(state="done", result=report.model_dump(mode="json"))
        return encode(done if len(asked) == 3 else Reply(state="running"))

    await kit.bus.subscribe(Subjects.vm_command("h2", vm), answer)
    found = await kit.signal(VmTarget(VmId(vm)), on_progress=seen.append, waits=waits.append)
    assert found == report
    assert {word.phase for word in seen} == {"of h2"}
    # Being asked again does not take it back; the answer does.
    assert waits == [*["what h2 waits for"] * 3, ""]


@pytest.mark.parametrize("way", [["h2"], ["h2", "h1"], ["h1"]])
async def test_a_vm_whose_lease_changes_is_asked_of_no_other_holder(kit: Kit, way: list[str]) -> None:
    vm = await kit.vm("h1")
    waits: list[str] = []
    sending = asyncio.create_task(kit.signal(VmTarget(VmId(vm)), patience=float("inf"), waits=waits.append))
    await kit.advance(1, lambda: bool(waits))
    assert waits[0] == f"the agent of VM {vm} on h1 to answer vm.pause"
    async with kit.store.transaction() as tx:
        for host in way:
            await tx.leases.advance(VmId(vm), HostName(host))
    await kit.answers(Subjects.vm_command("*", vm), Reply(state="done"))
    await kit.advance(2, sending.done)
    with pytest.raises(ConflictError, match=f"lease went to {way[-1]}"):
        await sending
    assert kit.requests == []


async def test_a_restarted_agent_is_asked_again_only_while_it_holds_the_vm(kit: Kit) -> None:
    vm = await kit.vm("h1")
    asked: asyncio.Queue[Message] = asyncio.Queue()

    async def hang(message: Message) -> None:
        asked.put_nowait(message)
        await asyncio.Event().wait()

    await kit.bus.subscribe(Subjects.vm_command("h1", vm), hang)
    sending = asyncio.create_task(kit.signal(VmTarget(VmId(vm))))
    await asyncio.wait_for(asked.get(), 10)
    async with kit.store.transaction() as tx:
        await tx.leases.advance(VmId(vm), HostName("h2"))
    await kit.host("h1")
    with pytest.raises(ConflictError, match="lease went to h2"):
        await asyncio.wait_for(sending, 10)
    assert asked.empty()


async def test_a_command_made_for_one_holder_goes_to_no_other(kit: Kit) -> None:
    vm = await kit.vm("h2")
    await kit.answers(Subjects.vm_command("h2", vm), Reply(state="done"))
    for host, epoch in (("h1", 1), ("h2", 2)):
        with pytest.raises(ConflictError, match="lease went to h2"):
            await kit.signal(VmTarget(VmId(vm), HostName(host), epoch))
    with pytest.raises(NotFoundError, match="never ran"):
        await kit.signal(VmTarget(new_id(VmId)))
    assert kit.requests == []


async def test_a_host_that_does_not_hold_the_vm_is_asked_again(kit: Kit) -> None:
    """Its journal may be ahead of the store, or its agent still busy with taking the VM over."""
    vm = await kit.vm("h1")
    asked: list[str] = []

    async def answer(message: Message) -> bytes:
        asked.append(message.subject)
        if len(asked) == 1:
            raise UnavailableError("h1 does not hold the lease")
        return encode(Reply(state="done", result=to_dict(kit.said(vm, state="paused"))))

    await kit.bus.subscribe(Subjects.vm_command("h1", vm), answer)
    sending = asyncio.create_task(kit.signal(VmTarget(VmId(vm))))
    await kit.advance(2, sending.done)
    assert (await sending).state is VmState.PAUSED
    assert asked == [f"host.h1.vm.{vm}.command"] * 2


@pytest.mark.parametrize("to", ["host", "vm"])
async def test_what_a_restarted_agent_was_asked_is_asked_again_at_its_hello(kit: Kit, to: str) -> None:
    """The answer of an agent that was killed never comes; the clock stands still here, so nothing else asks again."""
    vm = await kit.vm("h1")
    asked: list[str] = []
    never = asyncio.Event()

    async def answer(message: Message) -> bytes:
        asked.append(Request.model_validate_json(message.payload).id)
        if len(asked) == 1:
            await never.wait()
        said = kit.said(vm, state="paused") if to == "vm" else PoolStatus(state="ready")
        return encode(Reply(state="done", result=to_dict(said)))

    subject = Subjects.vm_command("h1", vm) if to == "vm" else Subjects.host_command("h1")
    await kit.bus.subscribe(subject, answer)
    sending = asyncio.create_task(kit.signal(VmTarget(VmId(vm))) if to == "vm" else kit.send())
    async with asyncio.timeout(5):
        while not asked:
            await asyncio.sleep(0.001)
        await kit.host("h2")
        await kit.host("h1")
        await sending
    assert len(asked) == 2
    assert asked[0] == asked[1]


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
        await tx.leases.offer(VmId(vm), HostName("h2"), "one")
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
        await tx.leases.offer(VmId(vm), HostName("h2"), "one")
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
            await tx.leases.offer(VmId(vm), HostName("h2"), "one")
        if why == "another host holds its lease":
            await tx.leases.commit(VmId(vm), 2, HostName("h2"))
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


async def test_a_ticket_is_redeemed_once_by_its_two_ends(kit: Kit) -> None:
    def ticket(seconds: float) -> Ticket:
        ends = {"holder": "a", "server": "host.h1", "expires": kit.clock.now() + timedelta(seconds=seconds)}
        return Ticket.model_validate({"id": new_secret(), "purpose": Purpose.CONSOLE, "resource": "vm", **ends})

    good, late = ticket(10), ticket(-1)
    async with kit.store.transaction() as tx:
        await tx.tickets.add(good)
        await tx.tickets.add(late)

    async def redeem(asked: Ticket, holder: str = "a", server: str = "host.h1", by: str = "h1") -> Ticket:
        body = RedeemTicket(ticket=asked.id, holder=holder, server=server)
        answer = await kit.bus.request(Subjects.redeem(by), encode(body), timeout=5)
        return Ticket.model_validate_json(answer)

    # Another bearer; another server, with its own name or with the right one.
    for holder, server, by in (("x", "host.h1", "h1"), ("a", "host.h2", "h2"), ("a", "host.h1", "h2")):
        with pytest.raises(UnauthorizedError):
            await redeem(good, holder, server, by)
    assert await redeem(good) == good
    with pytest.raises(UnauthorizedError):
        await redeem(good)
    with pytest.raises(UnauthorizedError):
        await redeem(late)


async def test_a_hello_or_report_on_another_hosts_subject_is_refused(kit: Kit) -> None:
    """Who may publish on a subject is the bus's matter; that the words fit it is the controller's."""
    await kit.host("h1")
    vm = await kit.vm("h1")
    forged = encode(kit.said(vm, state="crashed", sequence=9))
    for subject, words in (
        (Subjects.vm_report("h2", vm), forged),
        (Subjects.hello("h2"), encode(Hello(host=HostName("h1"), facts=FACTS.model_copy(update={"cpus": 1})))),
    ):
        with pytest.raises(InvalidError, match="another host's"):
            await kit.bus.request(subject, words, timeout=5)
    assert (await kit.status(vm)).state is VmState.RUNNING
    async with kit.store.read() as view:
        facts = (await view.hosts.find("h1")).status.facts
    assert facts is not None and facts.cpus == FACTS.cpus
