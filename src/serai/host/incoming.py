"""The destination of a live migration: prepared, then committed or abandoned, decided once and in its own journal.

`_commit` is the hot path: between QEMU's word that all state is here and `cont` stands one journal line with fsync.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serai.core.migration import DESTINATION, DestinationEvent, DestinationPhase
from serai.drivers.hypervisor.base import Machine, MachineEvent
from serai.host.kit import Kit
from serai.host.records import Incoming
from serai.lib.timeouts import time_limit
from serai.schema.attach import VnicAttachment
from serai.schema.commands.migration import Verdict
from serai.schema.errors import HostError, SeraiError
from serai.schema.lease import Claim, LeaseRecord

log = logging.getLogger(__name__)

JOURNAL_RETRY = 0.5
"""Seconds between two tries to write the commit to a journal that takes nothing (no space)."""

LAST_WORDS = 2.0
"""Seconds that a QEMU which failed may take to say why."""
GUEST_FIRST = 0.15
"""Seconds that the guest gets before book-keeping begins at both ends and at the controller. It comes with cold caches
(with TCG: all code to translate again) to hosts that may be small; what it cannot do now, its clients see as outage."""


class IncomingMove:
    """One move to this host. `on_decided(claim)` is called after the journal's word and, if committed, after `cont`."""

    def __init__(
        self,
        kit: Kit,
        vm: str,
        vnics: list[VnicAttachment],
        move: Incoming,
        on_decided: Callable[[Claim, str], None],
    ) -> None:
        self._kit = kit
        self._vm = vm
        self._vnics = vnics
        self.move = move
        self._on_decided = on_decided
        self._phase = DestinationPhase.PREPARED
        self._reason = ""
        self.asked_since: float | None = None
        """When the source first asked for the verdict, on the clock's monotonic scale."""
        self._decided = asyncio.Event()
        self._runs_since: float | None = None
        self._forget: Callable[[], None] | None = None

    @property
    def phase(self) -> DestinationPhase:
        return self._phase

    def watch(self, machine: Machine) -> None:
        """Follow QEMU's MIGRATION events from now on."""

        def on_event(event: MachineEvent) -> None:
            if event.name != "MIGRATION":
                return
            status = event.data.get("status")
            if status == "completed":
                self._kit.tasks.start(self.loaded(machine, event.at), f"commit-{self._vm}-{self.move.offer_id}")
            elif status == "failed":
                self._kit.tasks.start(self.failed(machine))

        self._forget = machine.subscribe(on_event)

    async def loaded(self, machine: Machine, since: float) -> None:
        """All state is here: the commit point, then run."""
        if not machine.alive:
            # It ended before its agent got to hear of it. The source has the VM still, and its end turns this down.
            return
        if not await self._commit():
            return
        journal_s = self._kit.clock.monotonic() - since
        # From here on nothing may keep the VM from running: what fails below is this host's own trouble with it.
        results = await asyncio.gather(
            machine.cont(), *(self._kit.network.open_port(vnic.tap) for vnic in self._vnics), return_exceptions=True
        )
        self._runs_since = self._kit.clock.monotonic()
        running_s = self._runs_since - since
        log.info(
            "vm %s: committed epoch %d: %.1f ms to the journal, %.1f ms until it runs",
            self._vm,
            self.move.epoch,
            journal_s * 1000,
            running_s * 1000,
        )
        for vnic in self._vnics:
            try:
                await self._kit.network.announce(vnic)
            except Exception as error:  # noqa: BLE001 - QEMU and the guest announce too; the VM must go on all the same
                log.warning("vm %s: could not announce %s: %s", self._vm, vnic.mac, error)
        for result in results:
            if isinstance(result, BaseException):
                log.error("vm %s: after the commit: %s", self._vm, result, exc_info=result)
        await self._kit.clock.sleep(GUEST_FIRST)
        self._finish(Claim.COMMITTED)

    async def failed(self, machine: Machine) -> None:
        """QEMU gave the loading up: turn the offer down, in its own words if it has any."""
        reason = "the destination's QEMU could not load the state"
        try:
            async with time_limit(LAST_WORDS):
                words = (await machine.migration_stats()).error
        except (SeraiError, TimeoutError) as error:
            log.info("vm %s: QEMU does not say why it failed: %s", self._vm, error)
            words = ""
        self.turn_down(DestinationEvent.QEMU_FAILED, f"{reason}: {words}" if words else reason)

    async def _commit(self) -> bool:
        """Whether it is this call that committed. Source and destination stand still until the journal takes it."""
        while True:
            try:
                return self._step(DestinationEvent.LOADED, Claim.COMMITTED, "")
            except HostError as error:
                log.error("vm %s cannot be committed: %s", self._vm, error)
                await self._kit.clock.sleep(JOURNAL_RETRY)

    def turn_down(self, event: DestinationEvent, reason: str) -> Verdict:
        """Abandon, unless it is committed already. Durable when it returns."""
        if self._step(event, Claim.ABANDONED, reason):
            self._finish(Claim.ABANDONED)
        return self.verdict()

    def verdict(self) -> Verdict:
        """What the journal says now (`offered` while undecided)."""
        claim = {
            DestinationPhase.PREPARED: Claim.OFFERED,
            DestinationPhase.COMMITTED: Claim.COMMITTED,
            DestinationPhase.ABANDONED: Claim.ABANDONED,
        }[self._phase]
        runs_s = 0.0 if self._runs_since is None else self._kit.clock.monotonic() - self._runs_since
        return Verdict(claim=claim, reason=self._reason, runs_s=runs_s)

    async def decided(self) -> Verdict:
        """Wait for the journal's word."""
        await self._decided.wait()
        return self.verdict()

    def _step(self, event: DestinationEvent, claim: Claim, reason: str) -> bool:
        after = DESTINATION[self._phase, event]
        if after is self._phase:
            return False
        self._kit.records.put_claim(
            LeaseRecord(
                vm=self._vm,
                epoch=self.move.epoch,
                claim=claim,
                offer_id=self.move.offer_id,
                peer=self.move.source,
                reason=reason,
            )
        )
        self._phase = after
        self._reason = reason
        return True

    def _finish(self, claim: Claim) -> None:
        if self._forget is not None:
            self._forget()
            self._forget = None
        # Whoever waits for the verdict is told only now: the source's clean-up must not compete with `cont`.
        self._decided.set()
        self._on_decided(claim, self._reason)
