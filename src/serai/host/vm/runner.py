"""Runs one VM: starts its QEMU, records how it fails and ends, and starts it again where its restart policy says so.

It knows neither commands nor moves, and has no lock: the VM's agent decides when it does what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serai.core.lifecycle import RESTART_DELAYS, SETTLED, End, VmEvent, after_end, follow
from serai.drivers.hypervisor.base import Hypervisor, Machine, MachineEvent, RunState
from serai.host.identity import HostIdentity
from serai.host.network.ports import VnicPorts
from serai.host.store import HostStore
from serai.host.vm.process import QemuProcess
from serai.host.vm.resources import VmResources
from serai.host.vm.state import RecordedState
from serai.lib.clock import Clock
from serai.lib.tasks import Tasks
from serai.lib.timeouts import time_limit
from serai.schema.errors import SeraiError, StaleError
from serai.schema.launch import Launch
from serai.schema.vm import VmReport, VmState

log = logging.getLogger(__name__)

KEEP_RETRY = 1.0
TRIED_AGAIN = 1.0
"""Seconds in which a VM that is resumed after an I/O error shows whether the same access fails again."""
PAUSED = "paused: "
"""Start of a reason: a failure paused the VM, not its owner."""
ALIVE = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.MIGRATING, VmState.STOPPING})
DOWN = frozenset({VmState.DEFINED, VmState.STOPPED, VmState.CRASHED})
UNWATCHED = "QEMU ended while no agent watched it"

OnEnd = Callable[[End], None]


@dataclass(frozen=True)
class VmServices:
    """What a VM agent uses of its host. `report` publishes without waiting."""

    identity: HostIdentity
    clock: Clock
    tasks: Tasks
    store: HostStore
    hypervisor: Hypervisor
    ports: VnicPorts
    resources: VmResources
    report: Callable[[VmReport], None]


class VmRunner:
    """`restart(reason)` tries to start the VM again; false: it failed and is to be tried again.

    `busy()`: a command is at work on the VM, which may want it to stand still. `on_move_end`, while it is set and the
    VM is on the move, is told of QEMU's end, and decides what that means.
    """

    def __init__(
        self,
        services: VmServices,
        state: RecordedState,
        restart: Callable[[str], Awaitable[bool]],
        busy: Callable[[], bool],
    ) -> None:
        self._services = services
        self._state = state
        self._restart = restart
        self._busy = busy
        self.qemu = QemuProcess(services.tasks, self._on_event, self._on_end)
        self.on_move_end: OnEnd | None = None
        self._starting = False
        self._running_since: float | None = None
        self._failed, self._failing = "", asyncio.Event()
        """The I/O error that stopped QEMU, until it is recorded; and that there is one."""

    def attach(self, machine: Machine) -> None:
        """The VM runs in this QEMU from now on."""
        self._failed = ""
        self._state.pid = machine.pid
        self.qemu.attach(machine)

    def _on_event(self, event: MachineEvent) -> None:
        if event.name == "BLOCK_IO_ERROR" and event.data.get("action") == "stop":
            self._failed = _failed_on(self._state.record.launch, event.data)
            self._failing.set()
            self.record_failure()
        elif event.name == "VSERPORT_CHANGE":
            self._state.guest_agent = bool(event.data.get("open"))

    def record_failure(self) -> None:
        """Called again once the VM is recorded as running: the failure may have come before that."""
        if self._failed and self._state.state is VmState.RUNNING:
            failed, self._failed = self._failed, ""
            self._state.follow(VmEvent.IO_ERROR, _paused(failed, self._state.name))

    def _on_end(self, end: End) -> None:
        """QEMU is gone: record a state with a reason, and do what the restart policy says."""
        self._state.pid = None
        if self._starting:
            return  # `start` records it
        if self.on_move_end is not None and self._state.record.moving:
            self.on_move_end(end)
        elif self._state.state not in DOWN:
            self.ended(end)

    def ended(self, end: End, **changes: Any) -> None:
        """The VM has ended like this: record it, with `changes` of the record, and follow the restart policy."""
        record = self._state.record
        asked = self.qemu.asked_to_end or not record.wanted
        since = self._running_since
        settled = since is not None and self._services.clock.monotonic() - since > SETTLED
        restarts = 0 if settled else record.restarts
        delay = after_end(record.restart, end, asked=asked, restarts=restarts)
        self._state.follow(end.event, end.reason, wanted=delay is not None, restarts=restarts, **changes)
        if delay is not None:
            self._services.tasks.start(self._restart_later(delay, end.reason))

    def restart_soon(self, reason: str) -> None:
        """The VM is down and should run: start it after the delay that is due after its restarts so far."""
        self._state.update(wanted=True)
        self._services.tasks.start(self._restart_later(self._next_delay(), reason))

    async def _restart_later(self, delay: float, reason: str) -> None:
        await self._services.clock.sleep(delay)
        while not await self._restart(reason):
            await self._services.clock.sleep(self._next_delay())

    def _next_delay(self) -> float:
        return RESTART_DELAYS[min(self._state.record.restarts, len(RESTART_DELAYS) - 1)]

    @property
    def may_run(self) -> bool:
        """Whether the journal lets the VM run here. Read again right before each `cont`: claims change meanwhile."""
        return self._services.store.may_run(self._state.vm) == self._state.record.epoch

    def check_may_run(self) -> None:
        """Raise StaleError unless the VM may run here."""
        if not self.may_run:
            raise StaleError(f"this host may not run VM {self._state.name} (lease epoch {self._state.record.epoch})")

    async def start(self, reason: str) -> None:
        """Start QEMU from the record; the caller holds the lock. Raises why it did not start, which is recorded."""
        self.check_may_run()
        if self._state.record.next_launch is not None:
            self._state.update(launch=self._state.record.next_launch, next_launch=None)
        self._starting, self.qemu.last_end = True, None
        try:
            await self._launch(reason)
        finally:
            self._starting = False
        if self.qemu.machine is None:  # it ended between `cont` and now
            self.ended(self.qemu.last_end or End(VmEvent.CRASHED, "QEMU ended at once", failure=True))
            return
        await self._services.ports.announce(self._state.record.launch.vnics)

    async def _launch(self, reason: str) -> None:
        crashed = self._state.state is VmState.CRASHED
        self._state.follow(VmEvent.START, reason)
        try:
            machine = await self.start_qemu(incoming=False)
            self.check_may_run()
            await machine.cont()
        except Exception as error:
            await self.qemu.kill()
            end = self.qemu.last_end
            words = end.reason if end is not None and not self.qemu.asked_to_end else str(error)
            # One that never ran has not crashed; one that had crashed, and does not come up, is still crashed.
            event = VmEvent.CRASHED if crashed else VmEvent.START_FAILED
            self._state.follow(event, f"could not start: {words}", wanted=False)
            raise
        self._running_since = self._services.clock.monotonic()
        self._state.follow(VmEvent.RUNS, reason)
        self.record_failure()

    async def start_qemu(self, *, incoming: bool) -> Machine:
        """A QEMU that stands still: before its first instruction, or with `incoming` until it has another's state."""
        launch, services = self._state.record.launch, self._services
        async with services.resources.place(launch, open_ports=not incoming) as placed:
            machine = await services.hypervisor.start(launch, placed, incoming=incoming, paused=True)
        self.attach(machine)
        return machine

    async def resume(self, machine: Machine) -> None:
        """QEMU repeats at once what had failed: return when that fails again, or has had the time to."""
        self._failed = ""
        self._failing.clear()
        await machine.cont()
        if self._state.record.reason.startswith(PAUSED):
            with contextlib.suppress(TimeoutError):
                async with time_limit(TRIED_AGAIN):
                    await self._failing.wait()

    async def settle(self, *, rebooted: bool) -> None:
        """After an agent's start: make the record agree with what QEMU does, or did while no agent watched it.

        Raises SeraiError if QEMU does not answer.
        """
        record, state = self._state.record, self._state.state
        if self.qemu.machine is not None:
            if not self.may_run:
                log.error("vm %s runs here without a lease: ending it", self._state.name)
                await self.qemu.quit(timeout=2.0)
            else:
                await self._settle_run_state(self.qemu.machine)
                self._services.tasks.start(self.keep_running())
        elif state in ALIVE or state is VmState.STARTING:
            if rebooted:
                wanted = record.wanted and record.autostart
                self._state.follow(VmEvent.CRASHED, "its host was rebooted", restarts=0, wanted=wanted)
            elif not record.wanted:
                self.ended(End(VmEvent.STOPPED_BY_FORCE, "stopped while no agent watched it", failure=False))
            else:
                self.ended(End(VmEvent.CRASHED, UNWATCHED, failure=True))
        elif record.wanted and state in (VmState.CRASHED, VmState.STOPPED):
            if not rebooted:
                self.restart_soon(record.reason)  # an earlier agent was about to
            elif not record.autostart:
                self._state.update(wanted=False)

    async def _settle_run_state(self, machine: Machine) -> None:
        found = await machine.run_state()
        self._running_since = self._services.clock.monotonic()
        if found is not RunState.RUNNING and self._state.state is VmState.STARTING:
            self.check_may_run()
            await machine.cont()  # its agent died between starting it and `cont`
            found = RunState.RUNNING
        event = VmEvent.FOUND_RUNNING if found is RunState.RUNNING else VmEvent.FOUND_PAUSED
        if follow(self._state.state, event, self._state.name) is self._state.state:
            self._state.report()  # keeps the reason
        else:
            self._state.follow(event, f"found {found} by a restarted agent")

    async def look_for_guest_agent(self) -> None:
        """After adoption: whether the guest's agent has opened its channel. Later changes come as events."""
        if self.qemu.machine is not None:
            found = await self.qemu.machine.guest_agent_open()
            if found is not self._state.guest_agent:
                self._state.guest_agent = found
                self._state.report()

    async def keep_running(self) -> None:
        """The VM is to run here now: see to it that QEMU runs, its ports are open and the network knows its place."""
        while (machine := self.qemu.machine) is not None and self._state.state is VmState.RUNNING:
            vnics = self._state.record.launch.vnics
            try:
                state = await machine.run_state()
                if state in (RunState.IO_ERROR, RunState.INMIGRATE, RunState.INTERNAL_ERROR):
                    self._state.follow(VmEvent.IO_ERROR, _paused(f"QEMU is in {state}", self._state.name))
                    return
                if not self.may_run:
                    log.error("vm %s is not to run here any more", self._state.name)
                    return
                if state is not RunState.RUNNING and not self._busy():
                    await machine.cont()
                await self._services.ports.open(vnics)
                if state is not RunState.RUNNING:
                    await self._services.ports.announce(vnics)
                return
            except SeraiError as error:
                log.error("vm %s is to run here, and does not yet: %s", self._state.vm, error)
                await self._services.clock.sleep(KEEP_RETRY)


def _failed_on(launch: Launch, data: Mapping[str, Any]) -> str:
    """What BLOCK_IO_ERROR says, in words: the volume's name where the node is a disk's."""
    node = str(data.get("node-name") or data.get("device") or "a disk")
    name = next((disk.name for disk in launch.disks if f"disk{disk.index}" == node), node)
    words = f": {data['reason']}" if data.get("reason") else ""
    return f"I/O error on {name} ({data.get('operation', 'access')}){words}"


def _paused(why: str, name: str) -> str:
    return f"{PAUSED}{why}; see that its pool has room and answers, then: serai vm resume {name}"
