"""The source of a live migration: follows core.migration's table on QMP events, one queue, one consumer.

A move is carried to its certain outcome. Once all state was sent, only the destination's journal has it, and is asked
for as long as it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from pydantic import ValidationError

from serai.core.lifecycle import End
from serai.core.migration import Act, SourceEvent, SourcePhase, resume_at, source_step
from serai.drivers.hypervisor.base import Machine, MachineEvent, MigrationSetup, RunState
from serai.host.store import Outgoing
from serai.host.vm.agent import VmAgent
from serai.host.vm.runner import VmServices
from serai.schema.commands.migration import MigrationOutcome, StartMigration, Verdict, VerdictAsk
from serai.schema.errors import ConflictError, SeraiError, StaleError
from serai.schema.lease import Claim

log = logging.getLogger(__name__)

LOOK_PERIOD = 2.0
"""Seconds without an event after which QEMU itself is asked: an event may be lost with its connection."""
VERDICT_RETRY = 0.5
"""Seconds between two questions to a destination that does not answer; outside the blackout of a move that succeeds."""

STATUS_EVENT = {event.value: event for event in SourceEvent}
ENDINGS = {SourceEvent.QEMU_FAILED: "failed", SourceEvent.QEMU_CANCELLED: "was cancelled by somebody else"}

PHASE_NAMES = {
    SourcePhase.SETUP: "setup",
    SourcePhase.PRECOPY: "precopy",
    SourcePhase.CANCELLING: "cancelling",
    SourcePhase.SWITCH: "switch",
    SourcePhase.SENT: "commit",
}
BEFORE_SWITCH = frozenset({SourcePhase.SETUP, SourcePhase.PRECOPY, SourcePhase.CANCELLING})

AskVerdict = Callable[[str, VerdictAsk], Awaitable[Verdict]]


class MigrationSource:
    """One move away from this host.

    `ask_verdict(host, question)` asks another host's journal over the bus, and raises UnavailableError without an
    answer. `tell` is told in words what the outcome waits for, as long as it does.
    """

    def __init__(self, services: VmServices, agent: VmAgent, move: Outgoing, ask_verdict: AskVerdict) -> None:
        self._clock = services.clock
        self._tasks = services.tasks
        self._ports = services.ports
        self._ask_verdict = ask_verdict
        self.agent = agent
        self.move = move
        self.tell: Callable[[str], None] = lambda _: None
        self._events: asyncio.Queue[tuple[SourceEvent, float]] = asyncio.Queue()
        self._phase = SourcePhase.SETUP
        self._moved_on = asyncio.Event()
        self._entered: dict[SourcePhase, float] = {}
        self._reason = ""
        self._ended = False
        """QEMU is gone."""
        self._failure = ""
        """How QEMU's migration ended, unless well: in words, with the phase in which it did."""
        self._asking: asyncio.Task[None] | None = None
        self._machine: Machine | None = None
        self._whole = False
        """This object saw the move from its start: what it timed is the move's."""

    def cancel(self, reason: str) -> bool:
        """Ask for the end of the move. False when it is too late: the switch has begun."""
        if self._phase in BEFORE_SWITCH:
            self._reason = self._reason or reason
            self._push(SourceEvent.CANCEL)
            return True
        return False

    async def stayed(self) -> bool:
        """Whether the VM stays, once that is known; false as soon as the last state may have been sent."""
        while self._phase in BEFORE_SWITCH:
            self._moved_on.clear()
            await self._moved_on.wait()
        return self._phase is SourcePhase.STAYED

    def qemu_ended(self, end: End) -> None:
        """QEMU of the source is gone; what that means depends on the phase."""
        self._reason = self._reason or end.reason
        self._ended = True
        self._push(SourceEvent.QEMU_ENDED)

    async def run(self, machine: Machine, start: StartMigration | None) -> MigrationOutcome:
        """Carry the move to its certain outcome. `start` none: take up what an earlier agent began."""
        self._machine = machine
        self._whole = start is not None
        self._enter(SourcePhase.SETUP, self._clock.monotonic())
        forget = machine.subscribe(self._on_event)
        try:
            if start is not None:
                await self._begin(machine, start)
            else:
                await self._take_up(machine)
            looking = self._tasks.start(self._look(machine))
            try:
                while not self._phase.ended:
                    event, at = await self._events.get()
                    await self._take(event, at)
            finally:
                looking.cancel()
        finally:
            forget()
            if self._asking is not None:
                self._asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._asking
        return await self._summary()

    async def run_without_qemu(self) -> MigrationOutcome:
        """QEMU ended while no agent watched it: only the destination's journal says whether the VM runs there."""
        at = self._clock.monotonic()
        self._enter(SourcePhase.SETUP, at)
        self._enter(SourcePhase.SENT, at)
        self._reason = "the source's QEMU ended in mid-migration"
        await self._ask()
        event, _ = await self._events.get()
        self._enter(SourcePhase.DONE if event is SourceEvent.COMMITTED else SourcePhase.STAYED, at)
        return await self._summary()

    async def _begin(self, machine: Machine, start: StartMigration) -> None:
        setup = MigrationSetup(
            capabilities=start.capabilities,
            downtime_limit_ms=start.downtime_limit_ms,
            bandwidth_bytes=0,
            tls_hostname=start.tls_hostname,
        )
        try:
            await machine.migrate(start.address, start.port, setup)
        except SeraiError as error:
            self._reason = f"QEMU refused to start the migration: {error}"
            self._push(SourceEvent.QEMU_FAILED)

    async def _look(self, machine: Machine) -> None:
        """Ask QEMU for its status and treat it like an event; one that was seen already changes nothing."""
        while True:
            await self._clock.sleep(LOOK_PERIOD)
            if self._phase is SourcePhase.SENT:
                continue
            try:
                status = (await machine.migration_stats()).status
                if status == "pre-switchover" and self._phase is SourcePhase.SWITCH:
                    await machine.migrate_continue()
            except SeraiError as error:
                log.info("vm %s: QEMU does not say how its migration stands: %s", self.agent.vm, error)
                continue
            known = STATUS_EVENT.get(status)
            if known is not None:
                self._push(known)

    async def _stands_at(self, machine: Machine) -> tuple[str, bool]:
        """QEMU's status of this move and whether its vCPUs run, however long it takes to answer."""
        while True:
            try:
                status = (await machine.migration_stats()).status
                return status, await machine.run_state() is RunState.RUNNING
            except SeraiError as error:
                if self._ended:
                    return "none", False
                log.warning("vm %s: QEMU does not say how its migration stands: %s", self.agent.vm, error)
                await self._clock.sleep(VERDICT_RETRY)

    async def _take_up(self, machine: Machine) -> None:
        status, running = await self._stands_at(machine)
        if self._ended:
            # It ended before it could say whether all was sent. Only assuming that it was is safe.
            self._phase = SourcePhase.SWITCH
            return
        log.info("vm %s: an interrupted move to %s stands at %s", self.agent.vm, self.move.destination, status)
        self._phase, event = resume_at(status, running=running)
        if event in (SourceEvent.CANCEL, SourceEvent.QEMU_CANCELLING, SourceEvent.QEMU_FAILED):
            self._reason = self._reason or "the source's agent was restarted in mid-migration"
        self._push(event)

    def _on_event(self, event: MachineEvent) -> None:
        if event.name == "MIGRATION":
            known = STATUS_EVENT.get(str(event.data.get("status")))
            if known is not None:
                self._events.put_nowait((known, event.at))

    def _push(self, event: SourceEvent, ago: float = 0.0) -> None:
        self._events.put_nowait((event, self._clock.monotonic() - ago))

    def _enter(self, phase: SourcePhase, at: float) -> None:
        self._phase = phase
        self._moved_on.set()
        self._entered.setdefault(phase, at)

    async def _take(self, event: SourceEvent, at: float) -> None:
        try:
            phase, acts = source_step(self._phase, event)
        except ConflictError:
            log.info("vm %s: %s does not count in phase %s", self.agent.vm, event, self._phase)
            return
        if phase.ended and event in ENDINGS:
            self._failure = f"QEMU's migration {ENDINGS[event]} in its phase {PHASE_NAMES[self._phase]}"
        self._enter(phase, at)
        for act in acts:
            try:
                await self._do(act)
            except SeraiError as error:
                # QEMU has ended, or was quicker; or a tap went with it. Its next event, or its next answer, decides.
                log.warning("vm %s: %s: %s", self.agent.vm, act, error)

    async def _do(self, act: Act) -> None:
        machine = self._machine
        if machine is None:
            raise RuntimeError("a move acts only while it runs")
        match act:
            case Act.CONTINUE:
                await machine.migrate_continue()
            case Act.CLOSE_PORT:
                await self._ports.close(self.agent.record.launch.vnics)
            case Act.OPEN_PORT:
                await self._ports.open(self.agent.record.launch.vnics)
            case Act.CANCEL:
                await machine.migrate_cancel()
            case Act.CONT:
                if not self.agent.may_run:
                    raise StaleError("the epoch was given up here meanwhile")
                await machine.cont()
                await machine.announce()
            case Act.ASK_VERDICT:
                self.agent.sent(self.move)
                self._asking = asyncio.create_task(self._ask(), name=f"verdict-{self.agent.vm}")

    async def _ask(self) -> None:
        question = self._question()
        while True:
            try:
                verdict = await self._ask_verdict(self.move.destination, question)
            except (SeraiError, ValidationError) as error:
                # Whatever is wrong at the destination, only a verdict ends the waiting.
                self._waits(str(error))
                await self._clock.sleep(VERDICT_RETRY)
                continue
            if verdict.claim is Claim.COMMITTED:
                # The move took until the VM ran, not until the destination found the time to say so.
                self._push(SourceEvent.COMMITTED, ago=verdict.runs_s)
                return
            if verdict.claim is Claim.ABANDONED:
                self._reason = self._reason or verdict.reason or "the destination turned it down"
                self._push(SourceEvent.ABANDONED)
                return
            self._waits("it has not decided yet")

    def _waits(self, why: str) -> None:
        waits_for = f"{self.move.destination}'s journal: {why}"
        log.warning("vm %s stays paused, waiting for %s", self.agent.vm, waits_for)
        self.tell(waits_for)

    async def _why(self, error: str) -> str:
        """Why the migration failed, as far as it is known: the phase, QEMU's own words, and the destination's."""
        here = f"{self._failure or 'the migration ended'}: {error or 'QEMU here gives no reason'}"
        try:
            verdict = await self._ask_verdict(self.move.destination, self._question())
        except (SeraiError, ValidationError) as silent:
            log.info("vm %s: %s does not say what it knows: %s", self.agent.vm, self.move.destination, silent)
            return f"{here}; {self.move.destination} could not be asked what it knows of it"
        return f"{here}; on {self.move.destination}: {verdict.reason or 'no reason is known either'}"

    def _question(self) -> VerdictAsk:
        return VerdictAsk(
            vm=self.agent.vm, epoch=self.move.epoch, offer_id=self.move.offer_id, journal=self.move.journal
        )

    async def _summary(self) -> MigrationOutcome:
        committed = self._phase is SourcePhase.DONE
        ended = self._clock.monotonic()
        try:
            stats = await self._machine.migration_stats() if self._machine is not None else None
        except SeraiError as error:
            log.info("vm %s: QEMU's statistics of the move are gone: %s", self.agent.vm, error)
            stats = None
        if not committed and not self._reason:
            self._reason = await self._why(stats.error if stats is not None else "")
        marks = [(phase, at) for phase, at in self._entered.items() if phase in PHASE_NAMES]
        phases = {}
        for index, (phase, at) in enumerate(marks):
            until = marks[index + 1][1] if index + 1 < len(marks) else self._entered.get(self._phase, ended)
            phases[PHASE_NAMES[phase]] = round(max(0.0, until - at), 6)
        done = self._entered.get(SourcePhase.DONE)
        ago = timedelta(seconds=self._clock.monotonic() - done) if done is not None else None
        return MigrationOutcome(
            committed=committed,
            resumed=None if ago is None else self._clock.now() - ago,
            reason="" if committed else self._reason,
            total_s=round(self._entered.get(self._phase, ended) - self._entered[SourcePhase.SETUP], 6)
            if self._whole
            else None,
            downtime_ms=stats.downtime_ms if stats else None,
            rounds=stats.rounds if stats else None,
            bytes_sent=stats.ram_transferred if stats else None,
            phases=phases if self._whole else {},
        )
