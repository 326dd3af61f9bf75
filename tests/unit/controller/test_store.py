"""The store: durable, one writer, events in commit order, pages, leases, and migrations that match the tables."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import OperationalError

from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.controller.store.events import Narrow
from serai.controller.store.tables import metadata
from serai.lib.clock import SystemClock
from serai.lib.ids import new_id, new_secret
from serai.schema.errors import ConflictError, NotFoundError, StaleError, UnavailableError
from serai.schema.ids import HostName, NetworkId, VmId
from serai.schema.network import Network, NetworkSpec, NetworkStatus
from serai.schema.ticket import Purpose, Ticket
from serai.schema.vm import Vm, VmSpec, VmState, VmStatus, VnicSpec

H1, H2, H3 = HostName("h1"), HostName("h2"), HostName("h3")

NOW = SystemClock().now()


def vm(name: str, **status: object) -> Vm:
    return Vm(
        name=name,
        id=new_id(VmId),
        generation=1,
        created=NOW,
        labels={"tier": "web"} if name.startswith("web") else {},
        description='says "hi"\n',
        spec=VmSpec(memory=1 << 30, cpus=2),
        status=VmStatus.model_validate(status),
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "state" / "serai.db")
    yield opened
    await opened.close()


async def test_a_resource_comes_back_as_it_was_written(store: Store, tmp_path: Path) -> None:
    web = vm("web1", state="running", host="h1")
    async with store.transaction() as tx:
        await tx.vms.insert(web)
    async with store.read() as view:
        assert await view.vms.find("web1") == web
        assert await view.vms.find(web.id) == web
        with pytest.raises(NotFoundError):
            await view.vms.find("web2")
    assert stat.S_IMODE((tmp_path / "state" / "serai.db").stat().st_mode) == 0o600


async def test_pages_and_filters(store: Store) -> None:
    async with store.transaction() as tx:
        for number in range(5):
            await tx.vms.insert(vm(f"web{number}", state="running", host="h1" if number % 2 else "h2"))
        await tx.vms.insert(vm("db"))
    async with store.read() as view:
        first = await view.vms.page(4, None, {})
        second = await view.vms.page(4, first.next, {})
        assert (len(first.items), first.next, len(second.items), second.next) == (4, "web2", 2, None)
        assert len((await view.vms.page(9, None, {"host": "h1"})).items) == 2
        assert len((await view.vms.page(9, None, {"label": "tier=web"})).items) == 5
        assert len((await view.vms.page(9, None, {"label": "tier=db"})).items) == 0
        assert (await view.vms.committed())[H2].memory == 3 << 30


async def test_a_block_that_raises_writes_nothing(store: Store) -> None:
    async def broken() -> None:
        async with store.transaction() as tx:
            await tx.vms.insert(vm("web1"))
            await tx.emit("vm.created", "vm/web1")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await broken()
    async with store.read() as view:
        assert await view.vms.named("web1") is None
    assert store.bell.newest == 0


async def test_a_taken_name_is_a_conflict(store: Store) -> None:
    async with store.transaction() as tx:
        await tx.vms.insert(vm("web1"))
        with pytest.raises(ConflictError, match="web1"):
            await tx.vms.insert(vm("web1"))


async def test_readers_cannot_write_and_transactions_do_not_nest(store: Store) -> None:
    async with store.read() as view:
        with pytest.raises(OperationalError, match="readonly"):
            await view.vms.insert(vm("web1"))
    async with store.transaction():
        with pytest.raises(RuntimeError, match="inside a transaction"):
            async with store.transaction():
                pass


async def test_events_are_numbered_in_commit_order_and_wake_those_who_wait(store: Store) -> None:
    waiting = asyncio.create_task(store.bell.beyond(0))

    async def write(number: int) -> None:
        async with store.transaction() as tx:
            await tx.emit("vm.created", f"vm/{number}", data=number)

    await asyncio.gather(*(write(number) for number in range(20)))
    assert await waiting >= 1
    async with store.read() as view:
        seqs = [seq for seq, _ in await view.events.after(0, 100)]
        page = await view.events.page(5, 10, Narrow())
    assert seqs == list(range(1, 21))
    assert page.next == "15"


async def test_numbers_of_cleared_events_are_not_given_again(store: Store) -> None:
    async with store.transaction() as tx:
        await tx.emit("a", "b")
    async with store.transaction() as tx:
        assert await tx.events.clear(tx.now + timedelta(days=1)) == 1
        assert await tx.emit("a", "b") == 2


async def test_a_cancelled_commit_is_still_announced(store: Store) -> None:
    told: list[str] = []
    begun = asyncio.Event()

    async def write() -> None:
        async with store.transaction() as tx:
            await tx.vms.insert(vm("web1"))
            tx.on_commit(lambda: told.append("yes"))
            begun.set()

    task = asyncio.create_task(write())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with store.read() as view:
        assert (await view.vms.named("web1") is not None) == bool(told)


async def test_closing_waits_for_who_is_at_work_and_refuses_who_comes_later(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "other.db")
    go_on = asyncio.Event()

    async def read() -> int:
        async with store.read() as view:
            await go_on.wait()
            return len(await view.vms.all())

    async def write() -> None:
        async with store.transaction() as tx:
            await tx.emit("vm.created", "vm/web1")

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    for late in (read, write):
        with pytest.raises(UnavailableError, match="going down"):
            await asyncio.wait_for(late(), 10)
    assert not closing.done()
    go_on.set()
    assert await reading == 0
    await closing


async def test_leases_follow_the_rules(store: Store) -> None:
    web = vm("web1")
    rights = Rights()
    async with store.transaction() as tx:
        await rights.begin(tx)
        for host in ("h1", "h2", "h3"):
            await rights.report(tx, HostName(host), [])
    async with store.transaction() as tx:
        await tx.vms.insert(web)
        await rights.first(tx, web.id, HostName("h1"))
        offered = await rights.offer(tx, web.id, HostName("h2"), "one")
        assert (offered.highest, offered.epoch) == (2, 1)
        with pytest.raises(ConflictError):
            await rights.offer(tx, web.id, HostName("h3"), "two")
        with pytest.raises(StaleError):
            await rights.commit(tx, web.id, 2, HostName("h3"))
        await rights.withdraw(tx, web.id, "one")
        assert (await rights.offer(tx, web.id, HostName("h2"), "two")).highest == 3
        with pytest.raises(StaleError):
            await rights.commit(tx, web.id, 2, HostName("h2"))
        assert (await rights.commit(tx, web.id, 3, HostName("h2"))).host == "h2"
        assert (await rights.advance(tx, await tx.leases.need(web.id), HostName("h1"))).epoch == 4
        assert (await rights.advance(tx, await tx.leases.need(web.id), HostName("h1"))).epoch == 5, (
            "a released epoch is never run again, there neither"
        )
        await tx.vms.delete(web.id)
        assert await tx.leases.get(web.id) is None


async def test_an_address_is_held_once(store: Store) -> None:
    lan = Network(
        name="lan",
        id=new_id(NetworkId),
        generation=1,
        created=NOW,
        spec=NetworkSpec.model_validate({"bridge": "br-lan", "subnet": "10.77.0.0/24"}),
        status=NetworkStatus(),
    )
    one, two = vm("one"), vm("two")
    first = VnicSpec(network=lan.id, ip=IPv4Address("10.77.0.100"), mac="52:54:00:00:00:01")
    second = first.model_copy(update={"mac": "52:54:00:00:00:02"})
    async with store.transaction() as tx:
        await tx.networks.insert(lan)
        await tx.vms.insert(one)
        await tx.vms.insert(two)
        await tx.networks.hold(one.id, [first])
        with pytest.raises(ConflictError, match=r"10\.77\.0\.100"):
            await tx.networks.hold(two.id, [second])
        assert await tx.networks.mac_taken("52:54:00:00:00:01")
        await tx.vms.delete(one.id)
        assert await tx.networks.used(lan.id) == set()


async def test_a_ticket_is_used_once_and_its_secret_is_not_stored(store: Store, tmp_path: Path) -> None:
    ticket = Ticket(
        id=new_secret(),
        purpose=Purpose.CONSOLE,
        resource="vm/1",
        holder="controller",
        server="host.h1",
        expires=NOW + timedelta(minutes=1),
    )
    async with store.transaction() as tx:
        await tx.tickets.add(ticket)
    async with store.transaction() as tx:
        assert await tx.tickets.look(ticket.id) == ticket
        assert await tx.tickets.take(ticket.id)
        assert not await tx.tickets.take(ticket.id)
    for file in (tmp_path / "state").iterdir():
        assert ticket.id.encode() not in file.read_bytes()


async def test_the_migrations_make_the_tables(store: Store) -> None:
    async with store.transaction() as tx:
        differences = await tx.connection.run_sync(
            lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
        )
    assert differences == []


async def test_a_second_start_finds_what_the_first_wrote(tmp_path: Path) -> None:
    first = await Store.open(tmp_path / "serai.db")
    async with first.transaction() as tx:
        await tx.vms.insert(vm("web1", state=VmState.RUNNING))
        await tx.emit("vm.created", "vm/web1")
    await first.close()
    second = await Store.open(tmp_path / "serai.db")
    async with second.read() as view:
        assert (await view.vms.find("web1")).status.state is VmState.RUNNING
    assert second.bell.newest == 1
    await second.close()


async def test_followers_get_recent_events_from_memory_and_old_ones_from_the_database(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.controller.store.store.EVENTS_KEPT", 3)
    async with store.transaction() as tx:
        numbers = [await tx.emit("test.state", "test/a", "", f"nr. {number}", number=number) for number in range(5)]
    with contextlib.suppress(RuntimeError):
        async with store.transaction() as tx:
            await tx.emit("test.state", "test/a", "", "never happened")
            raise RuntimeError
    async with store.read() as view:
        kept = await view.events.after(numbers[1], 10)
    assert [seq for seq, _ in kept] == numbers[2:]
    assert store.bell.recent(numbers[1], 10) == kept
    assert store.bell.recent(numbers[3], 10) == kept[2:]
    assert store.bell.recent(numbers[1], 2) == kept[:2]
    assert store.bell.recent(numbers[4], 10) == []
    assert store.bell.recent(numbers[0], 10) is None
