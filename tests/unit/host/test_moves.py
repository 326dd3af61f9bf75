"""Two agents and a VM between them: whatever is killed, cut or refused, one copy runs or none with a reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from serai.drivers.hypervisor.base import MachineEvent
from serai.drivers.hypervisor.fake import FakeMachine
from serai.host.records import CLAIMS_KEPT, COMMANDS_KEPT
from serai.lib.ids import new_id
from serai.schema.commands.envelope import Reply, Request
from serai.schema.commands.migration import (
    MIGRATION_ABANDON,
    MIGRATION_CANCEL,
    MIGRATION_PREPARE,
    MIGRATION_START,
    AbandonMigration,
    CancelMigration,
    CancelResult,
    MigrationEndpoint,
    MigrationOutcome,
    PrepareMigration,
    StartMigration,
    Verdict,
    VerdictAsk,
)
from serai.schema.commands.vm import VM_CONFIGURE, VM_PAUSE, VM_RELEASE, ConfigureResult, ConfigureVm, ReleaseVm
from serai.schema.encoding import encode
from serai.schema.errors import SeraiError, UnauthorizedError, UnavailableError
from serai.schema.lease import Claim
from serai.schema.subjects import Subjects
from serai.schema.vm import RestartPolicy, VmState

from .conftest import VM, Ground, Host, make_launch

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
            source=self.source.name,
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
            destination=self.destination.name,
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
        records = [host.records.vm(VM) for host in (self.source, self.destination) if host.up]
        moving = [r for r in records if r and (r.outgoing or r.incoming or r.state is VmState.STARTING)]
        return not moving and len(self.source.processes() + self.destination.processes()) <= 1

    def check(self) -> None:
        """One copy, or none with a reason; both journals agree on whose it is."""
        assert self.ground.most <= 1
        claims = (self.source.records.claim(VM, self.epoch - 1), self.destination.records.claim(VM, self.epoch))
        if self.committed:
            assert claims == (Claim.RELEASED, Claim.COMMITTED)
            holder, other = self.destination, self.source
        else:
            assert claims == (Claim.HELD, Claim.ABANDONED)
            holder, other = self.source, self.destination
        assert other.state() is None
        assert not other.processes()
        assert other.records.may_run(VM) is None
        assert holder.records.may_run(VM) is not None
        if holder.running:
            assert holder.state() is VmState.RUNNING
            assert holder.network.ports[make_launch().vnics[0].tap] is True
        else:
            assert holder.state() is VmState.CRASHED
            assert holder.reason()


@pytest.fixture
async def trip(ground: Ground) -> AsyncIterator[Trip]:
    """A VM that runs on h1 and is to move to h2."""
    found = Trip(ground, await ground.host("h1"), await ground.host("h2"))
    await ground.run_vm("h1")
    yield found
    if found.task is not None and not found.task.done():
        found.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await found.task


async def test_a_disk_that_fails_as_the_vm_arrives_pauses_it(
    trip: Trip, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is gone before the VM is said to run here: QEMU's own state tells."""

    async def fails(self: FakeMachine) -> None:
        self.process.io_error()

    ground.world.hold_at("completed")
    trip.begin()
    await ground.until(trip.destination.processes)
    monkeypatch.setattr(FakeMachine, "cont", fails)
    ground.world.release("completed")
    await ground.until(lambda: trip.destination.state() is VmState.PAUSED)
    assert trip.committed is not False
    assert "paused: QEMU is in io-error" in trip.destination.reason()
    await trip.over()
    assert trip.destination.state() is VmState.PAUSED


async def held(trip: Trip, phase: str, restart: RestartPolicy = RestartPolicy.NEVER) -> None:
    """Begin, and stop where QEMU is about to get to `phase`."""
    trip.ground.world.hold_at(phase)
    trip.begin(restart)
    before = {"active": "setup", "pre-switchover": "active", "device": "pre-switchover", "completed": "device"}
    await trip.ground.until(
        lambda: trip.source.processes() and trip.source.process().stats.status == before[phase], ticking=False
    )
    await trip.ground.turn()


async def test_a_vm_moves(trip: Trip) -> None:
    trip.begin()
    await trip.over()
    trip.check()
    assert trip.committed
    assert trip.destination.running
    assert trip.destination.network.announced == ["52:54:00:00:00:01"]
    assert not trip.ground.waits


async def test_a_vm_moves_there_and_back_and_there(trip: Trip) -> None:
    h1, h2 = trip.source, trip.destination
    hosts = [h1, h2]
    for number in range(4):
        again = Trip(trip.ground, hosts[0], hosts[1], epoch=2 + number, offer=f"offer{number}")
        again.begin()
        await again.over()
        again.check()
        assert again.committed
        hosts.reverse()


async def test_many_moves_leave_no_more_in_the_journals_than_a_few(trip: Trip) -> None:
    hosts = [trip.source, trip.destination]
    for number in range(3 * CLAIMS_KEPT):
        trip.ground.world.fail_at = "device" if number % 8 == 0 else None
        again = Trip(trip.ground, hosts[0], hosts[1], epoch=2 + number, offer=f"offer{number}")
        again.begin()
        await again.over()
        assert again.committed == (number % 8 != 0)
        if again.committed:
            hosts.reverse()
    for host in hosts:
        assert len(host.records.leases()) <= CLAIMS_KEPT + 1
        assert len(host.journal.all("command")) <= COMMANDS_KEPT
        assert len(host.journal.all("generation")) <= 1
    assert [host.records.may_run(VM) is not None for host in hosts] == [True, False]


async def test_a_vm_that_left_is_spoken_for_by_its_new_host_alone(trip: Trip) -> None:
    moving = asyncio.create_task(trip._move(RestartPolicy.NEVER))
    await trip.ground.until(moving.done)
    command = Request(id=new_id(), command=VM_PAUSE.name, key=f"vm/{VM}", body={"vm": VM})
    # The controller may not know yet that it left: it is not carried out, and asked again.
    with pytest.raises(UnavailableError, match="h1 does not hold the lease"):
        await trip.ground.bus.request(Subjects.vm_command("h1", VM), encode(command), 5.0)
    answer = await trip.ground.bus.request(Subjects.vm_command("h2", VM), encode(command), 5.0)
    assert Reply.model_validate_json(answer).state == "done"
    assert trip.destination.state() is VmState.PAUSED


@pytest.mark.parametrize("when", ["undecided", "decided"])
async def test_only_the_source_of_a_move_gets_its_verdict(trip: Trip, when: str) -> None:
    if when == "undecided":
        await held(trip, "completed")
    else:
        moving = asyncio.create_task(trip._move(RestartPolicy.NEVER))
        await trip.ground.until(moving.done)
    ask = VerdictAsk(vm=VM, epoch=trip.epoch, offer_id=trip.offer)
    before = trip.destination.records.leases(VM)
    with pytest.raises(UnauthorizedError, match="h3 is not the source"):
        await trip.ground.bus.request(Subjects.verdict("h2", "h3"), encode(ask), 5.0)
    assert trip.destination.records.leases(VM) == before
    if when == "undecided":
        trip.ground.world.release("completed")
        await trip.over()
        trip.check()
        assert trip.committed


async def test_a_vm_with_pending_changes_of_its_shape_stays(trip: Trip) -> None:
    body = ConfigureVm(launch=make_launch(generation=2, memory=128 << 20), restart=RestartPolicy.NEVER)
    answer: ConfigureResult = await trip.ground.ask("h1", VM_CONFIGURE, body)
    assert answer.undo == {answer.pending[0]: "--memory 64M"}
    trip.begin()
    await trip.over()
    trip.check()
    assert not trip.committed
    assert "serai vm restart web1" in trip.reason
    record = trip.source.records.vm(VM)
    assert record is not None
    assert (record.launch.memory, record.launch.generation) == (64 << 20, 1)
    assert record.next_launch == body.launch


@pytest.mark.parametrize("phase", PHASES)
async def test_qemus_migration_fails(trip: Trip, phase: str) -> None:
    trip.ground.world.fail_at = phase
    trip.begin()
    await trip.over()
    trip.check()
    assert not trip.committed
    assert trip.source.running
    last = {"active": "setup", "pre-switchover": "precopy", "device": "switch", "completed": "switch"}[phase]
    assert f"QEMU's migration failed in its phase {last}: made to fail before {phase}" in trip.reason
    assert "h2" in trip.reason


async def test_a_failure_is_told_in_the_destinations_words_too(trip: Trip) -> None:
    await held(trip, "device")
    process = trip.destination.process()
    process.mark("failed", error="load of device failed")
    await trip.ground.turn()
    trip.ground.world.fail_at = "device"
    trip.ground.world.release("device")
    await trip.over()
    trip.check()
    assert "on h2: the destination's QEMU could not load the state: load of device failed" in trip.reason


@pytest.mark.parametrize("phase", PHASES)
async def test_cancelled(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    body = CancelMigration(vm=VM, offer_id="offer")
    answer: CancelResult = await trip.ground.ask("h1", MIGRATION_CANCEL, body)
    await trip.ground.turn()
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert answer.too_late == trip.committed
    assert trip.committed == (phase in ("device", "completed"))
    assert (trip.destination if trip.committed else trip.source).running


async def test_a_late_cancel_of_another_move_is_too_late(trip: Trip) -> None:
    await held(trip, "pre-switchover")
    body = CancelMigration(vm=VM, offer_id="an older one")
    answer: CancelResult = await trip.ground.ask("h1", MIGRATION_CANCEL, body)
    assert answer.too_late
    trip.ground.world.release("pre-switchover")
    await trip.over()
    trip.check()
    assert trip.committed


@pytest.mark.parametrize("phase", PHASES)
async def test_the_destinations_qemu_is_killed(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    trip.destination.process().end(by_signal=9)
    await trip.ground.turn()
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert not trip.committed
    assert trip.source.running
    assert "signal 9" in trip.reason


async def test_a_failure_that_the_destination_cannot_be_asked_of_says_so(trip: Trip) -> None:
    trip.ground.world.fail_at = "device"
    trip.source.cut = True
    trip.begin()
    await trip.over()
    trip.check()
    assert "h2 could not be asked" in trip.reason


async def test_an_offer_whose_qemu_is_being_adopted_is_not_turned_down(trip: Trip) -> None:
    await held(trip, "completed")
    await trip.destination.kill()
    answers = trip.destination.hold_adoption(VM)
    await trip.destination.start(wait=False)
    trip.ground.world.release("completed")
    await trip.ground.until(lambda: (found := trip.source.records.vm(VM)) and found.outgoing and found.outgoing.sent)
    ask = VerdictAsk(vm=VM, epoch=2, offer_id="offer")
    answer = await trip.ground.bus.request(Subjects.verdict("h2", "h1"), encode(ask), 5.0)
    assert Verdict.model_validate_json(answer).claim is Claim.OFFERED
    answers.set()
    await trip.over()
    trip.check()
    assert trip.committed
    assert trip.destination.running


async def test_a_qemu_that_ended_before_its_agent_heard_that_it_has_all_is_not_committed(trip: Trip) -> None:
    await held(trip, "completed")
    process = trip.destination.process()
    assert process.machine is not None

    def on_event(event: MachineEvent) -> None:
        if event.data.get("status") == "completed":
            process.end(by_signal=9)

    process.machine.subscribe(on_event)
    trip.ground.world.release("completed")
    await trip.over()
    trip.check()
    assert not trip.committed
    assert trip.source.running
    assert "signal 9" in trip.reason


@pytest.mark.parametrize("restart", [RestartPolicy.NEVER, RestartPolicy.ON_FAILURE])
async def test_the_destinations_qemu_is_killed_after_the_commit(trip: Trip, restart: RestartPolicy) -> None:
    trip.begin(restart)
    await trip.over()
    trip.destination.process().end(by_signal=9)
    if restart is RestartPolicy.NEVER:
        await trip.ground.until(lambda: trip.destination.state() is VmState.CRASHED)
    else:
        await trip.ground.until(lambda: trip.destination.running and trip.destination.state() is VmState.RUNNING)
    trip.check()
    assert trip.committed


@pytest.mark.parametrize("phase", PHASES)
async def test_the_sources_qemu_is_killed(trip: Trip, phase: str) -> None:
    await held(trip, phase)
    trip.source.process().end(by_signal=9)
    # What the destination had is not whole: its QEMU says so.
    trip.destination.process().mark("failed")
    await trip.ground.turn()
    trip.ground.world.release(phase)
    await trip.over()
    trip.check()
    assert not trip.committed
    assert not trip.source.running


async def test_a_guest_that_powers_itself_off_on_the_move_stays_off(trip: Trip) -> None:
    await trip.ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VM, epoch=1))
    await trip.ground.run_vm("h1", epoch=2, restart=RestartPolicy.ON_FAILURE)
    again = Trip(trip.ground, trip.source, trip.destination, epoch=3)
    await held(again, "pre-switchover")
    trip.source.process().guest_ends()
    trip.ground.world.release("pre-switchover")
    await again.over()
    assert not again.committed
    assert trip.source.state() is VmState.STOPPED
    assert "powered itself off" in trip.source.reason()
    assert not trip.source.processes()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("end", ["source", "destination"])
async def test_an_agent_is_killed(trip: Trip, phase: str, end: str) -> None:
    host: Host = getattr(trip, end)
    await held(trip, phase)
    await host.kill()
    trip.ground.world.release(phase)
    await trip.ground.turn()
    await host.start()
    await trip.over()
    trip.check()
    assert (trip.destination if trip.committed else trip.source).running


@pytest.mark.parametrize("line", range(1, 10))
@pytest.mark.parametrize("end", ["source", "destination"])
async def test_an_agent_is_killed_at_any_line_of_its_journal(trip: Trip, line: int, end: str) -> None:
    host: Host = getattr(trip, end)
    host.die_after(line)
    trip.begin()
    assert trip.task is not None
    await trip.ground.until(lambda: not host.up or (trip.task is not None and trip.task.done()))
    if not host.up:
        await host.restart()
    await trip.over()
    trip.check()
    assert (trip.destination if trip.committed else trip.source).running


async def test_a_move_says_whose_word_it_waits_for(trip: Trip) -> None:
    """Also to who asks a restarted agent."""
    await held(trip, "completed")
    trip.source.cut = True
    trip.ground.world.release("completed")
    said = "h2's journal: the bus is away."
    await trip.ground.until(lambda: said in trip.ground.waits)
    await trip.source.restart()
    trip.ground.waits.clear()
    start = StartMigration(
        vm=VM,
        epoch=trip.epoch,
        offer_id=trip.offer,
        destination="h2",
        address="",
        port=1,
        tls_hostname="",
        capabilities=CAPABILITIES,
    )
    asking = asyncio.create_task(trip.ground.ask("h1", MIGRATION_START, start))
    await trip.ground.until(lambda: said in trip.ground.waits)
    trip.source.cut = False
    await trip.ground.until(asking.done)
    assert asking.result().committed


async def test_the_bus_is_cut_between_the_last_state_and_the_verdict(trip: Trip) -> None:
    await held(trip, "completed")
    trip.source.cut = True
    trip.ground.world.release("completed")
    await trip.ground.until(lambda: trip.destination.running)
    for _ in range(50):
        trip.ground.clock.advance(0.1)
        await trip.ground.turn(10)
    assert trip.source.state() is VmState.MIGRATING
    assert not trip.source.running
    trip.source.cut = False
    await trip.over()
    trip.check()
    assert trip.committed
