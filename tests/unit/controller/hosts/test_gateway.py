"""Commands on the in-process bus: asked until they are answered, and sent to the holder of the lease alone."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.controller.kit import INCARNATION, OPEN, THEN, Kit

from serai.controller.commands import VmTarget
from serai.lib.bus import Message
from serai.lib.ids import new_id
from serai.schema.commands.envelope import CommandProgress, Reply, Request
from serai.schema.commands.pool import OpenPool
from serai.schema.encoding import encode, to_dict
from serai.schema.errors import (
    CancelledByUserError,
    CapacityError,
    ConflictError,
    NotFoundError,
    SeraiError,
    UnavailableError,
)
from serai.schema.host import HostState
from serai.schema.ids import HostName, VmId
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport, VmState
from serai.schema.volume import PoolStatus


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
            await kit.rights.advance(tx, await tx.leases.need(VmId(vm)), HostName(host))
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
        await kit.rights.advance(tx, await tx.leases.need(VmId(vm)), HostName("h2"))
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


async def test_nothing_is_sent_before_a_host_has_introduced_itself(kit: Kit) -> None:
    """A newer position would overwrite, in its journal, the proof that the database is an old one."""
    await kit.answers(Subjects.host_command("h9"), Reply(state="done", result={"state": "ready"}))
    sending = asyncio.create_task(kit.send("h9", patience=5))
    await kit.advance(5, sending.done)
    with pytest.raises(UnavailableError, match="has not reported since the controller was started"):
        await sending
    assert kit.requests == []
    await kit.host("h9")
    assert (await kit.send("h9")).state == "ready"
    (request,) = kit.requests
    assert request.to == INCARNATION
    async with kit.store.read() as view:
        assert request.position == await view.lineage.position()


async def test_a_fenced_host_is_sent_nothing(kit: Kit) -> None:
    await kit.host("h1")
    await kit.answers(Subjects.host_command("h1"), Reply(state="done", result={"state": "ready"}))
    async with kit.store.transaction() as tx:
        await tx.hosts.update_status((await tx.hosts.find("h1")).id, state=HostState.FENCED)
    with pytest.raises(UnavailableError, match="h1 is fenced"):
        await kit.send(patience=float("inf"))
    assert kit.requests == []
