"""The gateway on the in-process bus, hosts that say what a test has them say, and a clock that it turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from serai.controller.commands import SendOptions, VmTarget
from serai.controller.hosts.gateway import Gateway
from serai.controller.hosts.presence import Presence
from serai.controller.hosts.reports import Reports
from serai.controller.hosts.tickets import serve_tickets
from serai.controller.store import Store
from serai.lib.bus import Message
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.lib.membus import MemBus
from serai.schema.commands.envelope import Reply, Request
from serai.schema.commands.pool import POOL_OPEN, OpenPool
from serai.schema.commands.vm import VM_PAUSE, SignalVm
from serai.schema.encoding import encode
from serai.schema.host import HostFacts
from serai.schema.reports import HostReport, Incarnation, Introduction, Welcome
from serai.schema.subjects import Subjects
from serai.schema.vm import Vm, VmReport, VmSpec, VmState, VmStatus
from serai.schema.volume import ExportKind, PoolDriverName, PoolStatus

FACTS = HostFacts(cpus=4, memory=8 << 30, accel="tcg", qemu_version="10.0", machine_types=["pc-q35-10.0"])
OPEN = OpenPool(pool=new_id(), driver=PoolDriverName.DIR, path="", export=ExportKind.NONE)
INCARNATION = Incarnation(journal="1" * 12, starts=1)
THEN = datetime(2026, 1, 1, tzinfo=UTC)


@contextlib.asynccontextmanager
async def listening(bus: MemBus, store: Store, clock: ManualClock) -> AsyncIterator[tuple[Gateway, Presence]]:
    """What the controller has on the bus."""
    gateway, presence = Gateway(bus, store, clock), Presence(store, clock)
    reports = Reports(bus, store, gateway, presence, clock)
    tickets = await serve_tickets(bus, store)
    for part in (presence, gateway, reports):
        await part.start()
    yield gateway, presence
    for part in (reports, gateway, presence):
        await part.stop()
    await tickets.unsubscribe()


class Kit:
    def __init__(self, store: Store, bus: MemBus, gateway: Gateway, presence: Presence, clock: ManualClock) -> None:
        self.store, self.bus, self.gateway, self.presence, self.clock = store, bus, gateway, presence, clock
        self.requests: list[Request] = []

    async def host(self, name: str) -> None:
        answer = await self.bus.request(
            Subjects.hello(name), encode(Introduction(host=name, incarnation=INCARNATION, facts=FACTS)), timeout=5
        )
        Welcome.model_validate_json(answer)

    async def answers(self, subject: str, *replies: Reply) -> None:
        """An agent that answers one after the other, the last for ever."""
        left = list(replies)

        async def answer(message: Message) -> bytes:
            self.requests.append(Request.model_validate_json(message.payload))
            return encode(left.pop(0) if len(left) > 1 else left[0])

        await self.bus.subscribe(subject, answer)

    async def vm(self, host: str = "h1") -> str:
        async with self.store.transaction() as tx:
            status = VmStatus(state=VmState.RUNNING, host=host, epoch=1)
            vm = Vm(name="web1", id=new_id(), generation=1, created=tx.now, spec=VmSpec(), status=status)
            await tx.vms.insert(vm)
            await tx.leases.create(vm.id, host)
        return vm.id

    def said(self, vm: str, **fields: Any) -> VmReport:
        given = {"host": "h1", "epoch": 1, "state": "running", "sequence": 1, "since": THEN, **fields}
        return VmReport.model_validate({"vm": vm, **given})

    async def report(self, vm: str, **fields: Any) -> VmStatus:
        """A report, and the VM's status after it."""
        said = self.said(vm, **fields)
        await self.bus.request(Subjects.vm_report(said.host, vm), encode(said), timeout=5)
        return await self.status(vm)

    async def status(self, vm: str) -> VmStatus:
        async with self.store.read() as view:
            return (await view.vms.get(vm)).status

    async def full_report(self, host: str, **fields: Any) -> None:
        said = HostReport(host=host, incarnation=INCARNATION, time=self.clock.now(), **fields)
        await self.bus.request(Subjects.host_report(host), encode(said), timeout=5)

    async def advance(self, seconds: float, until: Callable[[], bool] = lambda: True) -> None:
        await turn(self.clock, seconds, until)

    async def signal(self, target: VmTarget, **options: Any) -> VmReport:
        body = SignalVm(vm=target.vm)
        return await self.gateway.send(VM_PAUSE, target, body, SendOptions(id=new_id(), **options))

    async def send(self, **options: Any) -> PoolStatus:
        return await self.gateway.send(POOL_OPEN, "h1", OPEN, SendOptions(id=new_id(), **options))


async def turn(clock: ManualClock, seconds: float, until: Callable[[], bool] = lambda: True) -> None:
    """Turn the clock in small steps until something is so."""
    async with asyncio.timeout(20):
        left = seconds
        while left > 0 or not until():
            while not clock.sleepers:
                await asyncio.sleep(0.001)
            clock.advance(0.5)
            left -= 0.5
            await asyncio.sleep(0.001)
