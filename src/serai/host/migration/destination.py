"""The destination of a live migration: prepared, then committed or abandoned, decided once and in its own journal.

`loaded` is the hot path: between QEMU's word that all state is here and `cont` stands one journal line with fsync.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serai.core.lifecycle import End
from serai.core.migration import DESTINATION, DestinationEvent, DestinationPhase
from serai.drivers.hypervisor.base import Machine, MachineEvent
from serai.host.store import Incoming
from serai.host.vm.agent import VmAgent
from serai.host.vm.runner import VmServices
from serai.lib.timeouts import time_limit
from serai.schema.commands.migration import Verdict
from serai.schema.errors import HostError, SeraiError
from serai.schema.lease import Claim, LeaseRecord

log = logging.getLogger(__name__)

JOURNAL_RETRY = 0.5
"""Seconds between two tries to write the commit to a journal that takes nothing (no space)."""
LOOK_RETRY = 1.0
LAST_WORDS = 2.0
"""Seconds that a QEMU which failed may take to say why."""
PATIENCE = 60.0
"""Seconds that the last state may take to arrive after the source has sent it; then the offer is turned down, and the
source, which stands still, goes on. Turning down is always safe before the commit."""
GUEST_FIRST = 0.15
"""Seconds that the guest gets before book-keeping begins at both ends and at the controller. It comes with cold caches
(with TCG: all code to translate again) to hosts that may be small; what it cannot do now, its clients see as outage."""

CLAIM = {
    DestinationPhase.PREPARED: Claim.OFFERED,
    DestinationPhase.COMMITTED: Claim.COMMITTED,
    DestinationPhase.ABANDONED: Claim.ABANDONED,
}


class MigrationDestination:
    """One move to this host. `on_decided` is called after the journal's word and, if committed, after `cont`."""

    def __init__(
        self,
        services: VmServices,
        agent: VmAgent,
        move: Incoming,
        on_decided: Callable[[MigrationDestination], None],
    ) -> None:
        self._clock = services.clock
        self._tasks = services.tasks
        self._store = services.store
        self._ports = services.ports
        self.agent = agent
        self.move = move
        self._on_decided = on_decided
        self.phase = DestinationPhase.PREPARED
        self.reason = ""
        """Why it was abandoned."""
        self._asked_since: float | None = None
        self._decided = asyncio.Event()
        self._runs_since: float | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def watch(self, machine: Machine) -> None:
        """Follow QEMU's MIGRATION events from now on."""

        def on_event(event: MachineEvent) -> None:
            if event.name != "MIGRATION":
                return
            status = event.data.get("status")
            if status == "completed":
                self._tasks.start(self._loaded(machine, event.at), f"commit-{self.agent.vm}-{self.move.offer_id}")
            elif status == "failed":
                self._tasks.start(self._failed(machine))

        self._unsubscribe = machine.subscribe(on_event)

    async def look(self, machine: Machine) -> None:
        """Learn what QEMU did while no agent watched it, however long it takes to answer."""
        while self.phase is DestinationPhase.PREPARED and self.agent.has_qemu:
            try:
                status = (await machine.migration_stats()).status
            except SeraiError as error:
                log.warning("vm %s: QEMU does not say whether all state is here: %s", self.agent.vm, error)
                await self._clock.sleep(LOOK_RETRY)
                continue
            if status == "completed":
                await self._loaded(machine, self._clock.monotonic())
            elif status == "failed":
                await self._failed(machine)
            return

    async def _loaded(self, machine: Machine, since: float) -> None:
        """All state is here: the commit point, then run."""
        # A QEMU that ended before its agent heard this is not committed: the source still has the VM.
        if not machine.alive or not await self._commit():
            return
        journal_s = self._clock.monotonic() - since
        vnics = self.agent.record.launch.vnics
        # From here on nothing may keep the VM from running: what fails below is this host's own trouble with it.
        results = await asyncio.gather(machine.cont(), self._ports.open(vnics), return_exceptions=True)
        self._runs_since = self._clock.monotonic()
        log.info(
            "vm %s: committed epoch %d: %.1f ms to the journal, %.1f ms until it runs",
            self.agent.vm,
            self.move.epoch,
            journal_s * 1000,
            (self._runs_since - since) * 1000,
        )
        await self._ports.announce(vnics)
        for result in results:
            if isinstance(result, BaseException):
                log.error("vm %s: after the commit: %s", self.agent.vm, result, exc_info=result)
        await self._clock.sleep(GUEST_FIRST)
        self._finish()

    async def _failed(self, machine: Machine) -> None:
        """QEMU gave the loading up: turn the offer down, in its own words if it has any."""
        reason = "the destination's QEMU could not load the state"
        try:
            async with time_limit(LAST_WORDS):
                words = (await machine.migration_stats()).error
        except (SeraiError, TimeoutError) as error:
            log.info("vm %s: QEMU does not say why it failed: %s", self.agent.vm, error)
            words = ""
        self._turn_down(DestinationEvent.QEMU_FAILED, f"{reason}: {words}" if words else reason)

    def qemu_ended(self, end: End) -> None:
        """QEMU is gone, and with it the state; harmless once committed."""
        self._turn_down(DestinationEvent.QEMU_ENDED, f"the destination's {end.reason}")

    async def _commit(self) -> bool:
        """Whether it is this call that committed. Source and destination stand still until the journal takes it."""
        while True:
            try:
                return self._step(DestinationEvent.LOADED, "")
            except HostError as error:
                log.error("vm %s cannot be committed: %s", self.agent.vm, error)
                await self._clock.sleep(JOURNAL_RETRY)

    def turn_down(self, reason: str) -> Verdict:
        """Abandon, unless it is committed already. Durable when it returns."""
        return self._turn_down(DestinationEvent.TURN_DOWN, reason)

    def _turn_down(self, event: DestinationEvent, reason: str) -> Verdict:
        if self._step(event, reason):
            self._finish()
        return self._verdict()

    async def verdict(self, hold: float) -> Verdict:
        """The answer to the source, which asks once it has sent all; `offered` if undecided after `hold` seconds."""
        now = self._clock.monotonic()
        self._asked_since = now if self._asked_since is None else self._asked_since
        if now - self._asked_since > PATIENCE:
            return self.turn_down("the last state did not arrive")
        try:
            async with time_limit(hold):
                await self._decided.wait()
        except TimeoutError:
            log.debug("vm %s: the move is not decided yet", self.agent.vm)
        return self._verdict()

    def _verdict(self) -> Verdict:
        runs_s = 0.0 if self._runs_since is None else self._clock.monotonic() - self._runs_since
        return Verdict(claim=CLAIM[self.phase], reason=self.reason, runs_s=runs_s)

    def _step(self, event: DestinationEvent, reason: str) -> bool:
        after = DESTINATION[self.phase, event]
        if after is self.phase:
            return False
        self._store.put_claim(
            LeaseRecord(
                vm=self.agent.vm,
                epoch=self.move.epoch,
                claim=CLAIM[after],
                offer_id=self.move.offer_id,
                peer=self.move.source,
                reason=reason,
                port=self.agent.record.incoming.port if self.agent.record.incoming else None,
            )
        )
        self.phase = after
        self.reason = reason
        return True

    def _finish(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        # Only now, so that the source's clean-up does not compete with `cont`.
        self._decided.set()
        self._on_decided(self)
