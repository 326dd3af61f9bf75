"""A VM as its host knows it: its record, always what the journal holds, and the reports made of it.

`follow` is the one setter of the VM's state: it asks core.lifecycle's table, writes the record, logs and reports.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import Any

from serai.core.lifecycle import VmEvent, follow
from serai.drivers.hypervisor.base import Machine
from serai.host.kit import Kit
from serai.host.records import VmRecord
from serai.schema.vm import VmReport, VmState

log = logging.getLogger(__name__)


class KnownVm:
    """One VM's record on this host. `machine` is its QEMU, while `gone` is not set."""

    def __init__(self, kit: Kit, record: VmRecord) -> None:
        self._kit = kit
        self.record = record
        self.machine: Machine | None = None
        self.guest_agent = False
        self._gone = asyncio.Event()
        self._forgotten = False
        self._sequence = 0

    @property
    def vm(self) -> str:
        return self.record.launch.vm

    @property
    def state(self) -> VmState:
        return self.record.state

    def update(self, **changes: Any) -> None:
        """Change the record, durably."""
        after = self.record.model_copy(update=changes)
        if not self._forgotten:
            self._kit.records.put_vm(after)
        self.record = after

    async def forget(self) -> None:
        """The VM is not this host's any more: nothing of it stays here, nor comes back."""
        self._forgotten = True
        self._kit.records.forget_vm(self.vm)
        for folder in (self._kit.paths.vm_run(self.vm), self._kit.paths.vm_state(self.vm)):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def follow(self, event: VmEvent, reason: str = "", **changes: Any) -> None:
        """One step of the lifecycle table. Raises ConflictError when there is no such step; then nothing changes."""
        after = follow(self.state, event, self.record.launch.name)
        if after is not self.state:
            log.info(
                "vm %s (%s): %s -> %s on %s %s", self.record.launch.name, self.vm, self.state, after, event, reason
            )
            changes["since"] = self._kit.clock.now().isoformat()
        self.update(state=after, reason=reason, **changes)
        self.report()

    def report(self) -> None:
        """Say on the VM's own subject what it is."""
        self._kit.report(self.current_report())

    def current_report(self) -> VmReport:
        since = self.record.since or self._kit.clock.now().isoformat()
        # Wall time, so that it grows across restarts of the agent; and by itself, where the clock stands or goes back.
        self._sequence = max(self._sequence + 1, int(self._kit.clock.now().timestamp() * 1_000_000))
        return VmReport.model_validate(
            {
                "vm": self.vm,
                "host": self._kit.host,
                "epoch": self.record.epoch,
                "state": self.state,
                "reason": self.record.reason,
                "since": since,
                "pid": self.machine.pid if self.machine is not None and not self._gone.is_set() else None,
                "accel": self.record.launch.accel,
                "generation": self.record.launch.generation,
                "guest_agent": self.guest_agent,
                "restarts": self.record.restarts,
                "sequence": self._sequence,
            }
        )
