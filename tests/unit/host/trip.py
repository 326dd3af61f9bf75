"""A move between two hosts, as a job of the controller carries it out."""

from __future__ import annotations

import asyncio

from tests.unit.host.ground import VM, Ground, Host, make_launch

from serai.schema.commands.migration import (
    MIGRATION_ABANDON,
    MIGRATION_PREPARE,
    MIGRATION_START,
    AbandonMigration,
    MigrationEndpoint,
    MigrationOutcome,
    PrepareMigration,
    StartMigration,
    Verdict,
)
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.errors import SeraiError
from serai.schema.ids import HostName
from serai.schema.lease import Claim
from serai.schema.vm import RestartPolicy, VmState

PHASES = ["active", "pre-switchover", "device", "completed"]
CAPABILITIES = {"events": True, "pause-before-switchover": True, "return-path": False}


class Trip:
    """A job of the controller: prepare, migrate, and what follows of the outcome."""

    def __init__(
        self, ground: Ground, source: Host, destination: Host, *, epoch: int = 2, offer: str = "offer"
    ) -> None:
        self.ground = ground
        self.source = source
        self.destination = destination
        self.epoch = epoch
        self.offer = offer
        self.committed: bool | None = None
        self.reason = ""
        self.task: asyncio.Task[None] | None = None

    def begin(self, restart: RestartPolicy = RestartPolicy.NEVER) -> None:
        self.task = asyncio.create_task(self._carry(restart))

    async def _carry(self, restart: RestartPolicy) -> None:
        try:
            await self._move(restart)
        except SeraiError as error:
            self.reason = str(error)
        abandon = AbandonMigration(vm=VM, epoch=self.epoch, offer_id=self.offer, reason="given up")
        verdict: Verdict = await self.ground.ask(self.destination.name, MIGRATION_ABANDON, abandon)
        self.committed = verdict.claim is Claim.COMMITTED
        if self.committed:
            await self.ground.ask(self.source.name, VM_RELEASE, ReleaseVm(vm=VM, epoch=self.epoch - 1))

    async def prepare(self, restart: RestartPolicy = RestartPolicy.NEVER) -> MigrationEndpoint:
        prepare = PrepareMigration(
            launch=make_launch(epoch=self.epoch),
            epoch=self.epoch,
            offer_id=self.offer,
            source=HostName(self.source.name),
            source_identity=f"qemu.{self.source.name}",
            capabilities=CAPABILITIES,
            restart=restart,
        )
        prepared: MigrationEndpoint = await self.ground.ask(self.destination.name, MIGRATION_PREPARE, prepare)
        return prepared

    async def _move(self, restart: RestartPolicy) -> None:
        prepared = await self.prepare(restart)
        start = StartMigration(
            vm=VM,
            epoch=self.epoch,
            offer_id=self.offer,
            destination=HostName(self.destination.name),
            journal=prepared.journal,
            address=prepared.address,
            port=prepared.port,
            tls_hostname=prepared.tls_hostname,
            capabilities=CAPABILITIES,
        )
        outcome: MigrationOutcome = await self.ground.ask(self.source.name, MIGRATION_START, start)
        self.reason = outcome.reason

    async def over(self) -> None:
        assert self.task is not None
        await self.ground.until(self.task.done)
        self.task.result()
        await self.ground.until(self.quiet)

    def quiet(self) -> bool:
        """Nothing is under way any more at either end."""
        records = [host.store.vm(VM) for host in (self.source, self.destination) if host.up]
        moving = [r for r in records if r and (r.outgoing or r.incoming or r.state is VmState.STARTING)]
        return not moving and len(self.source.processes() + self.destination.processes()) <= 1

    def check(self) -> None:
        """One copy, or none with a reason; both journals agree on whose it is."""
        assert self.ground.most <= 1
        claims = (self.source.store.claim(VM, self.epoch - 1), self.destination.store.claim(VM, self.epoch))
        if self.committed:
            assert claims == (Claim.RELEASED, Claim.COMMITTED)
            holder, other = self.destination, self.source
        else:
            assert claims == (Claim.HELD, Claim.ABANDONED)
            holder, other = self.source, self.destination
        assert other.state() is None
        assert not other.processes()
        assert other.store.may_run(VM) is None
        assert holder.store.may_run(VM) is not None
        if holder.running:
            assert holder.state() is VmState.RUNNING
            assert holder.network.ports[make_launch().vnics[0].tap] is True
        else:
            assert holder.state() is VmState.CRASHED
            assert holder.reason()


async def held(trip: Trip, phase: str, restart: RestartPolicy = RestartPolicy.NEVER) -> None:
    """Begin, and stop where QEMU is about to get to `phase`."""
    trip.ground.world.hold_at(phase)
    trip.begin(restart)
    before = {"active": "setup", "pre-switchover": "active", "device": "pre-switchover", "completed": "device"}
    await trip.ground.until(
        lambda: trip.source.processes() and trip.source.process().stats.status == before[phase], ticking=False
    )
    await trip.ground.turn()
