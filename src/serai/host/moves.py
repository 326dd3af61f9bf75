"""A host's part in migrations: which VM agents are leaving, which are arriving, and what becomes of them.

The journal leads: `outgoing` and `incoming` of a VM's record, and the lease claims, are enough to take up any move
after the agent was killed at any moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from serai.core.lifecycle import End, VmEvent, follow
from serai.core.migration import DestinationEvent, DestinationPhase
from serai.drivers.hypervisor.base import Machine, MigrationSetup
from serai.host.incoming import IncomingMove
from serai.host.kit import Kit
from serai.host.outgoing import OutgoingMove
from serai.host.placing import place
from serai.host.records import Incoming, Outgoing, VmRecord
from serai.host.vm import VmAgent
from serai.schema.attach import Launch
from serai.schema.commands.migration import (
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
from serai.schema.errors import (
    ConflictError,
    InterruptedByRestartError,
    SeraiError,
    StaleError,
    UnauthorizedError,
    UnavailableError,
)
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import VmState

log = logging.getLogger(__name__)

MIGRATION_PORTS = (49152, 49215)
LOOK_RETRY = 1.0
OUTCOMES_KEPT = 64
PATIENCE = 60.0
"""Seconds that the last state may take to arrive after the source has sent it; then the offer is turned down, and the
source, which stands still, goes on. Turning down is always safe before the commit."""


def _check_alike(record: VmRecord) -> None:
    """The destination is started from what is wanted: QEMU takes the state only if that is what it runs with here."""
    wanted = record.next_launch
    if wanted is None:
        return

    def shape(launch: Launch) -> tuple[object, ...]:
        disks = [(disk.index, disk.source.volume) for disk in launch.disks]
        vnics = [(vnic.index, vnic.mac) for vnic in launch.vnics]
        return launch.machine, launch.cpus, launch.max_cpus, launch.memory, sorted(disks), sorted(vnics)

    if shape(record.launch) != shape(wanted):
        raise ConflictError(
            f"VM {record.launch.name} runs with other CPUs, memory or devices than it is to have after a restart",
            field="state",
            value="pending-restart",
            remedy=f"Restart it (serai vm restart {record.launch.name}), "
            "so that the pending changes apply, or take them back; then it moves.",
        )


def _restarted(kit: Kit) -> str:
    return f"{kit.host}'s agent was restarted while it prepared the move"


def _check_open(kit: Kit, body: PrepareMigration) -> None:
    """An offer that was turned down here is not prepared any more. Raises InterruptedByRestartError."""
    for row in kit.records.leases(body.launch.vm):
        if row.epoch == body.epoch and row.claim is Claim.ABANDONED:
            raise InterruptedByRestartError(
                f"the move was turned down: {row.reason}",
                field="to",
                value=kit.host,
                remedy=f"Move it again: serai vm migrate {body.launch.name} --to {kit.host}.",
            )


def _record_of(body: PrepareMigration, move: Incoming, since: str) -> VmRecord:
    return VmRecord(
        launch=body.launch,
        epoch=body.epoch,
        restart=body.restart,
        autostart=body.autostart,
        autostart_order=body.autostart_order,
        state=follow(VmState.DEFINED, VmEvent.INCOMING, body.launch.name),
        since=since,
        incoming=move,
    )


def _by_journal(kit: Kit, ask: VerdictAsk, reason: str) -> Verdict:
    """What the journal says of an offer; one that it does not say committed is turned down, durably."""
    rows = {row.epoch: row for row in kit.records.leases(ask.vm)}
    claim = rows[ask.epoch].claim if ask.epoch in rows else None
    newest = max(rows, default=0)
    if claim in (Claim.COMMITTED, Claim.HELD, Claim.RELEASED) or (claim is None and newest > ask.epoch):
        # Released here means that it was committed here and has moved on since. An epoch that is not known where a
        # later one is was decided so long ago that its record is pruned; a source that asks only now must not run.
        return Verdict(claim=Claim.COMMITTED)
    if claim is Claim.ABANDONED:
        reason = rows[ask.epoch].reason or reason
    else:
        kit.records.put_claim(
            LeaseRecord(vm=ask.vm, epoch=ask.epoch, claim=Claim.ABANDONED, offer_id=ask.offer_id, reason=reason)
        )
    return Verdict(claim=Claim.ABANDONED, reason=reason)


class Moves:
    """All moves of one host. `agents` is the host's table of VM agents, shared with its owner."""

    def __init__(self, kit: Kit, agents: dict[str, VmAgent]) -> None:
        self._kit = kit
        self._agents = agents
        self._outgoing: dict[str, OutgoingMove] = {}
        self._incoming: dict[str, IncomingMove] = {}
        self._outcomes: dict[str, asyncio.Future[MigrationOutcome]] = {}

    # --- destination ---

    async def prepare(self, body: PrepareMigration) -> MigrationEndpoint:
        """Tap closed, disks, QEMU `-incoming defer -S`, journal `offered`; undone as a whole if a part fails."""
        launch = body.launch
        present = self._agents.get(launch.vm)
        await self._turn_down_half_made(body)
        _check_open(self._kit, body)
        if present is None and self._kit.records.vm(launch.vm) is not None:
            raise UnavailableError(f"the QEMU of VM {launch.name} on {self._kit.host} does not answer")
        held = self._kit.records.may_run(launch.vm) is not None
        if present is not None and present.record.incoming is not None and not held:
            again = present.record.incoming
            if again.offer_id == body.offer_id and again.port and not present.gone.is_set():
                return MigrationEndpoint(
                    address=self._kit.migration_address, port=again.port, tls_hostname=self._kit.tls_hostname
                )
            held = True
        if held or (present is not None and not present.gone.is_set()):
            raise ConflictError(
                f"VM {launch.name} is on {self._kit.host} already",
                field="to",
                value=self._kit.host,
                remedy="Name another host.",
            )
        self._kit.records.put_claim(
            LeaseRecord(vm=launch.vm, epoch=body.epoch, claim=Claim.OFFERED, offer_id=body.offer_id, peer=body.source)
        )
        move = Incoming(offer_id=body.offer_id, epoch=body.epoch, source=body.source)
        record = _record_of(body, move, self._kit.clock.now().isoformat())
        self._kit.records.put_vm(record)
        agent = VmAgent(self._kit, record)
        self._agents[launch.vm] = agent
        try:
            async with place(self._kit, launch, open_ports=False) as placing:
                machine = await self._kit.hypervisor.start(launch, placing, incoming=True, paused=True)
            agent.attach(machine)
            self._receive(agent, move)
            setup = MigrationSetup(
                capabilities=body.capabilities,
                downtime_limit_ms=0,
                bandwidth_bytes=0,
                tls_hostname=body.source_identity,
            )
            port = await machine.prepare_incoming(setup, self._kit.migration_address, MIGRATION_PORTS)
            agent.update(incoming=move.model_copy(update={"port": port}))
        except BaseException as error:
            await self._turn_down(agent, move, f"could not be prepared: {error}")
            raise
        return MigrationEndpoint(address=self._kit.migration_address, port=port, tls_hostname=self._kit.tls_hostname)

    async def _turn_down_half_made(self, body: PrepareMigration) -> None:
        """An earlier agent died while it prepared this offer, and nobody knows how far its QEMU is."""
        record, agent = self._kit.records.vm(body.launch.vm), self._agents.get(body.launch.vm)
        if record is None or (move := record.incoming) is None or move.offer_id != body.offer_id or move.port:
            return
        if agent is not None:
            await self._turn_down(agent, move, _restarted(self._kit))
        else:  # its QEMU is still to be adopted, and is ended then
            ask = VerdictAsk(vm=record.launch.vm, epoch=move.epoch, offer_id=move.offer_id)
            self._decide(ask, _restarted(self._kit))

    def _receive(self, agent: VmAgent, move: Incoming) -> IncomingMove:
        incoming = IncomingMove(
            self._kit,
            agent.vm,
            agent.record.launch.vnics,
            move,
            lambda claim, reason: self._arrived(agent, claim, reason),
        )
        self._incoming[agent.vm] = incoming

        def on_gone(end: End) -> None:
            incoming.turn_down(DestinationEvent.QEMU_ENDED, f"the destination's {end.reason}")

        agent.on_gone = on_gone
        if agent.machine is not None:
            incoming.watch(agent.machine)
        return incoming

    def _arrived(self, agent: VmAgent, claim: Claim, reason: str) -> None:
        """The offer was decided: committed and running, or abandoned and to be cleared away."""
        agent.on_gone = None
        if claim is Claim.COMMITTED:
            agent.follow(VmEvent.ARRIVED, f"arrived from {self._incoming[agent.vm].move.source}", incoming=None)
            if agent.gone.is_set():
                # It died between the commit and now: from the commit on a crash is the VM's own.
                agent.ended(agent.last_end or End(VmEvent.CRASHED, "QEMU ended at the commit", failure=True))
            else:
                self._kit.tasks.start(agent.keep_running())
        else:
            self._kit.tasks.start(self._clear(agent, reason))

    async def _clear(self, agent: VmAgent, reason: str) -> None:
        await agent.end_qemu()
        incoming = self._incoming.get(agent.vm)
        if incoming is not None and incoming.phase is not DestinationPhase.PREPARED:
            del self._incoming[agent.vm]
        if self._agents.get(agent.vm) is agent:
            log.info("vm %s: the offer was turned down: %s", agent.vm, reason)
            del self._agents[agent.vm]
            await agent.forget()
            self._kit.records.prune_leases(agent.vm)

    async def _turn_down(self, agent: VmAgent, move: Incoming, reason: str) -> None:
        incoming = self._incoming.get(agent.vm)
        if incoming is None or incoming.move.offer_id != move.offer_id:  # else one of an earlier visit
            incoming = self._receive(agent, move)
        incoming.turn_down(DestinationEvent.TURN_DOWN, reason)
        await self._clear(agent, reason)

    async def abandon(self, body: AbandonMigration) -> Verdict:
        """Turn the offer down for ever, unless committed. An offer never heard of is turned down too, durably."""
        verdict = self._decide(VerdictAsk(vm=body.vm, epoch=body.epoch, offer_id=body.offer_id), body.reason)
        agent = self._agents.get(body.vm)
        if verdict.claim is Claim.ABANDONED and agent is not None and agent.record.incoming is not None:
            await self._clear(agent, body.reason)
        return verdict

    def _decide(self, ask: VerdictAsk, reason: str) -> Verdict:
        incoming = self._incoming.get(ask.vm)
        if incoming is not None and incoming.move.offer_id == ask.offer_id:
            return incoming.turn_down(DestinationEvent.TURN_DOWN, reason)
        return _by_journal(self._kit, ask, reason)

    async def verdict(self, ask: VerdictAsk, source: str, hold: float) -> Verdict:
        """Committed or abandoned? Waits up to `hold` seconds for a move that is still being decided.

        Raises UnauthorizedError if the offer is known and `source`, who asks, is not its source.
        """
        for row in self._kit.records.leases(ask.vm):
            if row.epoch == ask.epoch and row.offer_id == ask.offer_id and row.peer not in (None, source):
                raise UnauthorizedError(f"{source} is not the source of this move", field="source", value=source)
        incoming = self._incoming.get(ask.vm)
        if incoming is not None and incoming.move.offer_id == ask.offer_id:
            # Only a source that has sent all asks.
            now = self._kit.clock.monotonic()
            incoming.asked_since = now if incoming.asked_since is None else incoming.asked_since
            if now - incoming.asked_since > PATIENCE:
                return incoming.turn_down(DestinationEvent.TURN_DOWN, "the last state did not arrive")
            try:
                return await asyncio.wait_for(incoming.decided(), hold)
            except TimeoutError:
                return incoming.verdict()
        return self._decide(ask, "the destination knows nothing of this offer")

    # --- source ---

    async def migrate(self, body: StartMigration, tell: Callable[[str], None]) -> MigrationOutcome:
        """Move a VM away; returns when the outcome is certain. Repeats of one offer share one outcome.

        `tell`: told what the move waits for, as long as it does (see `OutgoingMove.tell`).
        """
        known = self._outcomes.get(body.offer_id)
        if known is not None:
            leaving = self._outgoing.get(body.vm)
            if leaving is not None and leaving.move.offer_id == body.offer_id:
                leaving.tell = tell
            return await asyncio.shield(known)
        agent = self._agents.get(body.vm)
        if agent is None:
            raise ConflictError(f"the VM is not on {self._kit.host}", field="vm", value=body.vm)
        if agent.record.epoch >= body.epoch or self._kit.records.may_run(body.vm) != agent.record.epoch:
            raise StaleError(f"the VM is here under epoch {agent.record.epoch}: epoch {body.epoch} is not the next")
        async with agent.lock:
            machine = agent.live_machine()
            _check_alike(agent.record)
            move = Outgoing(offer_id=body.offer_id, epoch=body.epoch, destination=body.destination)
            agent.follow(VmEvent.MIGRATE, f"moving to {body.destination}", outgoing=move)
            outgoing = self._leave(agent, move)
            outgoing.tell = tell
        outcome: asyncio.Future[MigrationOutcome] = asyncio.get_running_loop().create_future()
        self._outcomes[body.offer_id] = outcome
        while len(self._outcomes) > OUTCOMES_KEPT:
            del self._outcomes[next(iter(self._outcomes))]
        self._kit.tasks.start(self._carry(agent, outgoing, outcome, outgoing.run(machine, body)))
        return await asyncio.shield(outcome)

    def _leave(self, agent: VmAgent, move: Outgoing) -> OutgoingMove:
        def on_sent() -> None:
            agent.update(outgoing=move.model_copy(update={"sent": True}))

        taps = [vnic.tap for vnic in agent.record.launch.vnics]
        outgoing = OutgoingMove(self._kit, agent.vm, taps, move, on_sent)
        self._outgoing[agent.vm] = outgoing
        agent.on_gone = lambda end: outgoing.qemu_ended(end.reason)
        return outgoing

    async def _carry(
        self,
        agent: VmAgent,
        outgoing: OutgoingMove,
        outcome: asyncio.Future[MigrationOutcome],
        run: Coroutine[Any, Any, MigrationOutcome],
    ) -> None:
        try:
            result = await run
            await self._settle(agent, result)
        except BaseException as error:
            if not outcome.done():
                outcome.set_exception(error if isinstance(error, Exception) else SeraiError("the agent was stopped"))
                outcome.exception()  # whoever asks again gets it; nobody may be asking now
            raise
        finally:
            self._outgoing.pop(agent.vm, None)
        if not outcome.done():
            outcome.set_result(result)

    async def _settle(self, agent: VmAgent, result: MigrationOutcome) -> None:
        if result.committed:
            agent.on_gone = lambda _end: None  # it left: that its QEMU ends here is no end of the VM
            await self._left(agent)
            return
        agent.on_gone = None
        if agent.gone.is_set():
            agent.ended(agent.last_end or End(VmEvent.CRASHED, result.reason, failure=True), outgoing=None)
        else:
            agent.follow(VmEvent.MIGRATE_ENDED, f"stayed: {result.reason}", outgoing=None)
            await agent.keep_running()

    async def _left(self, agent: VmAgent) -> None:
        """The destination holds the VM: end QEMU here and give the old epoch up, for good."""
        epoch = agent.record.epoch
        await agent.end_qemu()
        claim = self._kit.records.claim(agent.vm, epoch)
        if claim is not Claim.RELEASED:
            self._kit.records.put_claim(
                LeaseRecord(vm=agent.vm, epoch=epoch, claim=Claim.RELEASED, reason="moved away")
            )
        if self._agents.get(agent.vm) is agent:
            del self._agents[agent.vm]
            await agent.forget()
            self._kit.records.prune_leases(agent.vm)

    def cancel(self, body: CancelMigration) -> CancelResult:
        """Ask a move to end before its switch. One that is over, or unknown here, is too late to cancel."""
        outgoing = self._outgoing.get(body.vm)
        mine = outgoing is not None and outgoing.move.offer_id == body.offer_id
        return CancelResult(too_late=outgoing is None or not mine or not outgoing.cancel(body.reason))

    # --- after a restart of the agent ---

    async def take_up(self, agent: VmAgent) -> None:
        """Continue what an earlier agent had begun with this VM."""
        record = agent.record
        if record.outgoing is not None:
            self._take_up_outgoing(agent, record.outgoing)
        elif record.incoming is not None:
            await self._take_up_incoming(agent, record.incoming)

    def _take_up_outgoing(self, agent: VmAgent, move: Outgoing) -> None:
        outgoing = self._leave(agent, move)
        outcome: asyncio.Future[MigrationOutcome] = asyncio.get_running_loop().create_future()
        self._outcomes[move.offer_id] = outcome
        # Without QEMU, whether all had been sent is unknown here: the destination's journal decides.
        run = outgoing.run(agent.machine, None) if agent.machine is not None else outgoing.run_without_qemu()
        self._kit.tasks.start(self._carry(agent, outgoing, outcome, run))

    async def _take_up_incoming(self, agent: VmAgent, move: Incoming) -> None:
        claim = self._kit.records.claim(agent.vm, move.epoch)
        if claim is Claim.COMMITTED:
            # Decided: whoever asks is answered from the journal.
            agent.follow(VmEvent.ARRIVED, f"arrived from {move.source}", incoming=None)
            if agent.machine is None:
                agent.ended(End(VmEvent.CRASHED, "QEMU ended while no agent watched it", failure=True))
            else:
                await agent.keep_running()
            return
        incoming = self._receive(agent, move)
        if agent.machine is None or claim is not Claim.OFFERED or not move.port:  # no port: no source was told of it
            ended = "the destination's QEMU ended while its agent was away"
            await self._turn_down(agent, move, ended if move.port else _restarted(self._kit))
            return
        self._kit.tasks.start(self._look(agent, agent.machine, incoming))

    async def _look(self, agent: VmAgent, machine: Machine, incoming: IncomingMove) -> None:
        """What QEMU did while no agent watched it, asked for as long as it takes."""
        while incoming.phase is DestinationPhase.PREPARED and not agent.gone.is_set():
            try:
                status = (await machine.migration_stats()).status
            except SeraiError as error:
                log.warning("vm %s: QEMU does not say whether all state is here: %s", agent.vm, error)
                await self._kit.clock.sleep(LOOK_RETRY)
                continue
            if status == "completed":
                await incoming.loaded(machine, self._kit.clock.monotonic())
            elif status == "failed":
                await incoming.failed(machine)
            return
