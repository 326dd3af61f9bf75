"""A VM's recorded state on this host, and the reports made of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from serai.core.lifecycle import VmEvent, follow
from serai.host.identity import HostIdentity
from serai.host.store import HostStore, VmRecord
from serai.lib.clock import Clock
from serai.schema.ids import VmId
from serai.schema.vm import VmReport, VmState

log = logging.getLogger(__name__)


class RecordedState:
    """`record` is always what the journal holds. `follow` is the only setter of the VM's state.

    `pid` and `guest_agent` are what the VM's agent observes; they stand in reports alone.
    """

    def __init__(
        self,
        identity: HostIdentity,
        store: HostStore,
        clock: Clock,
        publish: Callable[[VmReport], None],
        record: VmRecord,
    ) -> None:
        self._identity = identity
        self._store = store
        self._clock = clock
        self._publish = publish
        self.record = record
        self.pid: int | None = None
        self.guest_agent = False
        self.forgotten = False

    @property
    def state(self) -> VmState:
        return self.record.state

    @property
    def name(self) -> str:
        return self.record.launch.name

    @property
    def vm(self) -> VmId:
        return self.record.launch.vm

    def update(self, **changes: Any) -> None:
        """Change fields of the record, in the journal first."""
        after = self.record.model_copy(update=changes)
        if not self.forgotten:
            self._store.put_vm(after)
        self.record = after

    def forget(self) -> None:
        """The VM has left this host: its record goes, and no later update brings it back."""
        self.forgotten = True
        self._store.forget_vm(self.vm)

    def follow(self, event: VmEvent, reason: str = "", **changes: Any) -> None:
        """One step of the lifecycle table: recorded, logged and reported. Raises ConflictError if there is none."""
        after = follow(self.state, event, self.name)
        if after is not self.state:
            log.info("vm %s (%s): %s -> %s on %s %s", self.name, self.vm, self.state, after, event, reason)
            changes["since"] = self._clock.now().isoformat()
        self.update(state=after, reason=reason, **changes)
        self.report()

    def report(self) -> None:
        self._publish(self.current_report())

    def current_report(self) -> VmReport:
        return VmReport.model_validate(
            {
                "vm": self.vm,
                "host": self._identity.name,
                "epoch": self.record.epoch,
                "state": self.state,
                "reason": self.record.reason,
                "since": self.record.since or self._clock.now().isoformat(),
                "pid": self.pid,
                "accel": self.record.launch.accel,
                "generation": self.record.launch.generation,
                "guest_agent": self.guest_agent,
                "restarts": self.record.restarts,
                "starts": self._identity.incarnation.starts,
                "sequence": next(self._identity.numbers),
            }
        )
