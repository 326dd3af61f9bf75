"""A host's part in live migrations: which VMs are leaving, which are arriving, and what becomes of them.

The journal leads: `outgoing` and `incoming` of a VM's record, and the lease claims, are enough to take up any move
after the agent was killed at any moment. VMs are the supervisor's; the manager asks it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from serai.core.lifecycle import VmEvent, follow
from serai.core.migration import DestinationPhase
from serai.drivers.hypervisor.base import MigrationSetup
from serai.host.migration.destination import MigrationDestination
from serai.host.migration.offers import OfferBook
from serai.host.migration.ports import MigrationPorts
from serai.host.migration.source import AskVerdict, MigrationSource
from serai.host.store import Incoming, Outgoing, VmRecord, terms
from serai.host.vm.agent import VmAgent
from serai.host.vm.runner import VmServices
from serai.host.vm.supervisor import Supervisor
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
    Withdrawal,
    WithdrawMigration,
)
from serai.schema.errors import (
    ConflictError,
    SeraiError,
    StaleError,
    UnavailableError,
)
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import VmState

log = logging.getLogger(__name__)

Run = Coroutine[Any, Any, MigrationOutcome]

OUTCOMES_KEPT = 64


class MigrationManager:
    """All moves from and to one host.

    `address` is where its QEMUs listen for a move; `tls_hostname` their identity, which the other end checks.
    """

    def __init__(
        self,
        services: VmServices,
        supervisor: Supervisor,
        ask_verdict: AskVerdict,
        *,
        address: str,
        tls_hostname: str,
    ) -> None:
        self._services = services
        self._host = services.identity.name
        self._journal = services.identity.incarnation.journal
        self._store = services.store
        self._ports = MigrationPorts()
        self._offers = OfferBook(self._host, services.store)
        self._supervisor = supervisor
        self._ask_verdict = ask_verdict
        self._address = address
        self._tls_hostname = tls_hostname
        self._sources: dict[str, MigrationSource] = {}
        self._destinations: dict[str, MigrationDestination] = {}
        self._outcomes: dict[str, asyncio.Future[MigrationOutcome]] = {}
        """By offer, of moves away; the oldest are dropped."""

    # --- destination ---

    async def prepare(self, body: PrepareMigration) -> MigrationEndpoint:
        """Tap closed, disks, QEMU `-incoming defer -S`, journal `offered`; undone as a whole if a part fails."""
        vm = body.launch.vm
        present = self._supervisor.find(vm)
        await self._turn_down_half_made(body)
        self._offers.check_open(body)
        if present is None and self._store.vm(vm) is not None:
            raise UnavailableError(f"the QEMU of VM {body.launch.name} on {self._host} does not answer")
        held = self._store.may_run(vm) is not None
        incoming = None if present is None or held else present.record.incoming
        running = present is not None and present.has_qemu
        if incoming is not None and incoming.offer_id == body.offer_id and incoming.port and running:
            return self._prepared(incoming.port)
        if incoming is not None or held or running:
            raise ConflictError(
                f"VM {body.launch.name} is on {self._host} already",
                field="to",
                value=self._host,
                remedy="Name another host.",
            )
        offered = LeaseRecord(vm=vm, epoch=body.epoch, claim=Claim.OFFERED, offer_id=body.offer_id, peer=body.source)
        self._store.put_claim(offered)
        self._store.put_document(body.document)
        move = Incoming(offer_id=body.offer_id, epoch=body.epoch, source=body.source)
        state = follow(VmState.DEFINED, VmEvent.INCOMING, body.launch.name)
        since = self._services.clock.now().isoformat()
        agent = self._supervisor.add(VmRecord(**terms(body), epoch=body.epoch, state=state, since=since, incoming=move))
        destination = self._destination(agent, move)
        setup = MigrationSetup(
            capabilities=body.capabilities, downtime_limit_ms=0, bandwidth_bytes=0, tls_hostname=body.source_identity
        )
        self._destinations[vm] = destination
        try:
            machine = await agent.receive(destination.qemu_ended)
            self._offers.check_open(body)
            destination.watch(machine)
            used = self._offers.ports(vm)
            port = await self._ports.listen(machine, setup, self._address, used)
            self._offers.check_open(body)
            self._store.put_claim(offered.model_copy(update={"port": port}))
            agent.listening(move, port)
        except BaseException as error:
            await self._turn_down(destination, f"could not be prepared: {error}")
            raise
        return self._prepared(port)

    def _prepared(self, port: int) -> MigrationEndpoint:
        return MigrationEndpoint(
            address=self._address, port=port, tls_hostname=self._tls_hostname, journal=self._journal
        )

    async def _turn_down_half_made(self, body: PrepareMigration) -> None:
        """An earlier agent died while it prepared this offer, and nobody knows how far its QEMU is."""
        record, agent = self._store.vm(body.launch.vm), self._supervisor.find(body.launch.vm)
        if record is None or (move := record.incoming) is None or move.offer_id != body.offer_id or move.port:
            return
        if agent is not None:
            destination = self._destinations.get(agent.vm)
            if destination is None or destination.move.offer_id != move.offer_id:  # one of an earlier visit
                destination = self._destination(agent, move)
            await self._turn_down(destination, self._restarted())
        else:  # its QEMU is still to be adopted, and is ended then
            ask = VerdictAsk(vm=record.launch.vm, epoch=move.epoch, offer_id=move.offer_id)
            self._decide(ask, self._restarted())

    def _restarted(self) -> str:
        return f"{self._host}'s agent was restarted while it prepared the move"

    def _destination(self, agent: VmAgent, move: Incoming) -> MigrationDestination:
        return MigrationDestination(self._services, agent, move, self._decided)

    def _decided(self, destination: MigrationDestination) -> None:
        """Committed and running, or abandoned and to be cleared away."""
        if destination.phase is DestinationPhase.COMMITTED:
            destination.agent.arrive(destination.move.source)
        else:
            self._services.tasks.start(self._clear(destination.agent, destination.reason))

    async def _turn_down(self, destination: MigrationDestination, reason: str) -> None:
        self._destinations[destination.agent.vm] = destination
        destination.turn_down(reason)
        await self._clear(destination.agent, reason)

    async def _clear(self, agent: VmAgent, reason: str) -> None:
        await agent.vacate()
        destination = self._destinations.get(agent.vm)
        if destination is not None and destination.phase is not DestinationPhase.PREPARED:
            del self._destinations[agent.vm]
        if self._supervisor.find(agent.vm) is agent:
            log.info("vm %s: the offer was turned down: %s", agent.vm, reason)
        await self._supervisor.remove(agent)

    async def abandon(self, body: AbandonMigration) -> Verdict:
        """Turn the offer down for ever, unless committed. An offer never heard of is turned down too, durably."""
        if (undecided := await self._undecided(body)) is not None:
            return undecided
        verdict = self._decide(VerdictAsk(vm=body.vm, epoch=body.epoch, offer_id=body.offer_id), body.reason)
        agent = self._supervisor.find(body.vm)
        move = None if agent is None else agent.record.incoming
        if verdict.claim is Claim.ABANDONED and agent is not None and move and move.offer_id == body.offer_id:
            await self._clear(agent, body.reason)
        return verdict

    def _decide(self, ask: VerdictAsk, reason: str) -> Verdict:
        destination = self._destination_of(ask)
        return self._offers.decide(ask, reason) if destination is None else destination.turn_down(reason)

    def _destination_of(self, ask: VerdictAsk) -> MigrationDestination | None:
        found = self._destinations.get(ask.vm)
        return found if found is not None and found.move.offer_id == ask.offer_id else None

    async def verdict(self, ask: VerdictAsk, source: str, hold: float) -> Verdict:
        """Committed or abandoned? Waits up to `hold` seconds for a move that is still being decided.

        Raises UnauthorizedError if the offer is known and `source`, who asks, is not its source.
        """
        self._offers.check_asker(ask, source)
        if (undecided := await self._undecided(ask)) is not None:
            return undecided
        destination = self._destination_of(ask)
        if destination is not None:
            return await destination.verdict(hold)
        return self._offers.decide(ask, "the destination knows nothing of this offer")

    async def _undecided(self, ask: VerdictAsk) -> Verdict | None:
        """The answer to an offer of which this journal cannot know what became: the one that it was made to is lost, or
        is another copy of this one.
        """
        if ask.journal not in (None, self._journal):
            return Verdict(claim=Claim.OFFERED, reason=f"the journal of {self._host} to which it was offered is gone")
        # An offer is in the journal before its prepare is answered with the journal's id.
        if ask.journal is not None and all(row.epoch < ask.epoch for row in self._store.leases(ask.vm)):
            return Verdict(claim=Claim.OFFERED, reason=f"this copy of {self._host}'s journal does not know the offer")
        if self._store.leases(ask.vm) or self._store.vm(ask.vm) is not None:
            return None
        if all(found.vm != ask.vm for found in await self._services.hypervisor.processes()):
            return None
        log.error("vm %s runs here, and the journal knows nothing of it: its journal was lost", ask.vm)
        return Verdict(claim=Claim.OFFERED, reason=f"{self._host} runs it, and its journal does not know it")

    # --- source ---

    async def migrate(self, body: StartMigration, tell: Callable[[str], None]) -> MigrationOutcome:
        """Move a VM away; returns when the outcome is certain. Repeats of one offer share one outcome.

        `tell`: told what the move waits for, as long as it does (see `MigrationSource`).
        """
        outcome = self._outcomes.get(body.offer_id)
        source = self._sources.get(body.vm)
        if outcome is None:
            outcome = await self._leave(body, tell)
        elif source is not None and source.move.offer_id == body.offer_id:
            source.tell = tell
        return await asyncio.shield(outcome)

    async def _leave(self, body: StartMigration, tell: Callable[[str], None]) -> asyncio.Future[MigrationOutcome]:
        agent = self._supervisor.find(body.vm)
        if agent is None:
            raise ConflictError(f"the VM is not on {self._host}", field="vm", value=body.vm)
        if agent.record.epoch >= body.epoch or self._store.may_run(body.vm) != agent.record.epoch:
            raise StaleError(f"the VM is here under epoch {agent.record.epoch}: epoch {body.epoch} is not the next")
        move = Outgoing(offer_id=body.offer_id, epoch=body.epoch, destination=body.destination, journal=body.journal)
        source = MigrationSource(self._services, agent, move, self._ask_verdict)
        source.tell = tell
        machine = await agent.begin_leaving(move, source.qemu_ended)
        return self._carry_out(source, source.run(machine, body))

    def _carry_out(self, source: MigrationSource, run: Run) -> asyncio.Future[MigrationOutcome]:
        outcome: asyncio.Future[MigrationOutcome] = asyncio.get_running_loop().create_future()
        self._sources[source.agent.vm] = source
        self._outcomes[source.move.offer_id] = outcome
        while len(self._outcomes) > OUTCOMES_KEPT:
            del self._outcomes[next(iter(self._outcomes))]
        self._services.tasks.start(self._carry(source, outcome, run))
        return outcome

    async def _carry(
        self,
        source: MigrationSource,
        outcome: asyncio.Future[MigrationOutcome],
        run: Run,
    ) -> None:
        try:
            result = await run
            if result.committed:
                await self._left(source.agent)
            else:
                await source.agent.stay(result.reason)
        except BaseException as error:
            if not outcome.done():
                outcome.set_exception(error if isinstance(error, Exception) else SeraiError("the agent was stopped"))
                outcome.exception()  # whoever asks again gets it; nobody may be asking now
            raise
        finally:
            self._sources.pop(source.agent.vm, None)
        if not outcome.done():
            outcome.set_result(result)

    async def _left(self, agent: VmAgent) -> None:
        """The destination holds the VM: end QEMU here and give the old epoch up, for good."""
        epoch = agent.record.epoch
        await agent.vacate()
        self._store.give_up(agent.vm, epoch, "moved away")
        await self._supervisor.remove(agent)

    def cancel(self, body: CancelMigration) -> CancelResult:
        """Ask a move to end before its switch. One that is over, or unknown here, is too late to cancel."""
        source = self._sources.get(body.vm)
        mine = source is not None and source.move.offer_id == body.offer_id
        return CancelResult(too_late=source is None or not mine or not source.cancel(body.reason))

    async def withdraw(self, body: WithdrawMigration) -> Withdrawal:
        """Promise that the last state of an offer is never sent, by a claim `abandoned` in this journal.

        A move that has not begun its switch is cancelled first.
        """
        source = self._sources.get(body.vm)
        if source is not None and source.move.offer_id == body.offer_id:
            source.cancel(body.reason)
            if not await source.stayed():
                return Withdrawal(never_sent=False)
            await asyncio.wait({self._outcomes[body.offer_id]})
        promised = self._offers.promised(body)
        if promised is None:
            promised = await self._promise(body)
        return Withdrawal(never_sent=promised)

    async def _promise(self, body: WithdrawMigration) -> bool:
        promise = LeaseRecord(
            vm=body.vm, epoch=body.epoch, claim=Claim.ABANDONED, offer_id=body.offer_id, reason=body.reason
        )
        return await self._supervisor.agent(body.vm).never_sends(promise)

    # --- after a restart of the agent ---

    async def take_up(self, agent: VmAgent) -> None:
        """Continue what an earlier agent had begun with this VM."""
        record = agent.record
        if record.outgoing is not None:
            self._take_up_outgoing(agent, record.outgoing)
        elif record.incoming is not None:
            await self._take_up_incoming(agent, record.incoming)

    def _take_up_outgoing(self, agent: VmAgent, move: Outgoing) -> None:
        source = MigrationSource(self._services, agent, move, self._ask_verdict)
        machine = agent.resume_move(source.qemu_ended)
        # Without QEMU, whether all had been sent is unknown here: the destination's journal decides.
        self._carry_out(source, source.run_without_qemu() if machine is None else source.run(machine, None))

    async def _take_up_incoming(self, agent: VmAgent, move: Incoming) -> None:
        claim = self._store.claim(agent.vm, move.epoch)
        if claim is Claim.COMMITTED:
            agent.arrive(move.source)  # whoever asks is answered from the journal
            return
        destination = self._destinations[agent.vm] = self._destination(agent, move)
        machine = agent.resume_move(destination.qemu_ended)
        if machine is None or claim is not Claim.OFFERED or not move.port:  # no port: no source was told of it
            ended = "the destination's QEMU ended while its agent was away"
            await self._turn_down(destination, ended if move.port else self._restarted())
            return
        destination.watch(machine)
        self._services.tasks.start(destination.look(machine))
