"""The gateway on the in-process bus, hosts that say what a test has them say, and a clock that it turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from serai.controller.commands import SendOptions, VmTarget
from serai.controller.hosts.listening import HostLinks
from serai.controller.services.rights import Rights
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
from serai.schema.ids import HostName, PoolId, VmId
from serai.schema.reports import HostReport, Incarnation, Introduction, Welcome
from serai.schema.subjects import Subjects
from serai.schema.vm import Vm, VmReport, VmSpec, VmState, VmStatus
from serai.schema.volume import ExportKind, PoolDriverName, PoolStatus

FACTS = HostFacts(cpus=4, memory=8 << 30, accel="tcg", qemu_version="10.0", machine_types=["pc-q35-10.0"])
OPEN = OpenPool(pool=new_id(PoolId), driver=PoolDriverName.DIR, path="", export=ExportKind.NONE)
INCARNATION = Incarnation(journal="1" * 12, starts=1)
THEN = datetime(2026, 1, 1, tzinfo=UTC)


class Kit:
    def __init__(self, store: Store, bus: MemBus, rights: Rights, hosts: HostLinks, clock: ManualClock) -> None:
        self.store, self.bus, self.rights, self.clock = store, bus, rights, clock
        self.gateway, self.presence = hosts.gateway, hosts.presence
        self.requests: list[Request] = []

    async def reported(self, *hosts: str) -> None:
        """These have told all their claims, which are none."""
        async with self.store.transaction() as tx:
            for host in hosts:
                await self.rights.report(tx, HostName(host), [])

    async def offer(self, vm: str, to: str = "h2") -> None:
        async with self.store.transaction() as tx:
            await self.rights.offer(tx, VmId(vm), HostName(to), "one")

    async def host(self, name: str) -> None:
        answer = await self.bus.request(
            Subjects.hello(name),
            encode(Introduction(host=HostName(name), incarnation=INCARNATION, facts=FACTS)),
            timeout=5,
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
        for name in ("h1", "h2", "h3"):
            await self.host(name)
        async with self.store.transaction() as tx:
            status = VmStatus(state=VmState.RUNNING, host=HostName(host), epoch=1)
            vm = Vm(name="web1", id=new_id(VmId), generation=1, created=tx.now, spec=VmSpec(), status=status)
            await tx.vms.insert(vm)
            self.rights.created(tx, vm.id)
        await self.first(vm.id, host)
        return vm.id

    async def first(self, vm: str, host: str) -> None:
        async with self.store.transaction() as tx:
            await self.rights.first(tx, VmId(vm), HostName(host))

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
            return (await view.vms.get(VmId(vm))).status

    async def full_report(self, host: str, **fields: Any) -> None:
        said = HostReport(host=HostName(host), incarnation=INCARNATION, time=self.clock.now(), **fields)
        await self.bus.request(Subjects.host_report(host), encode(said), timeout=5)

    async def advance(self, seconds: float, until: Callable[[], bool] = lambda: True) -> None:
        await turn(self.clock, seconds, until)

    async def signal(self, target: VmTarget, **options: Any) -> VmReport:
        body = SignalVm(vm=target.vm)
        return await self.gateway.send(VM_PAUSE, target, body, SendOptions(id=new_id(), **options))

    async def send(self, host: str = "h1", **options: Any) -> PoolStatus:
        return await self.gateway.send(POOL_OPEN, host, OPEN, SendOptions(id=new_id(), **options))


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
