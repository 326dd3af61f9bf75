"""The VM agent: supervises one VM on this host. It is an actor inside the host agent's process.

Whatever changes the VM goes through here, one action at a time (`lock`). Its state and record are `KnownVm`'s. QEMU's
own end comes in through `_watch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serai.core.lifecycle import RESTART_DELAYS, SETTLED, End, VmEvent, after_end, classify_end, follow
from serai.drivers.hypervisor.base import ExitInfo, Machine, MachineEvent, RunState
from serai.host.kit import Kit
from serai.host.known import KnownVm
from serai.host.placing import place
from serai.host.records import VmRecord
from serai.lib.timeouts import time_limit
from serai.schema.attach import Launch
from serai.schema.commands.vm import StartVm
from serai.schema.errors import ConflictError, SeraiError, StaleError
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import VmReport, VmState

log = logging.getLogger(__name__)

KEEP_RETRY = 1.0
PRESS_AGAIN = 5.0
"""Seconds between two presses of the power button of a guest that is to shut down."""
TRIED_AGAIN = 1.0
"""Seconds in which a VM that is resumed after an I/O error shows whether what had failed fails again."""
PAUSED = "paused: "
"""The begin of a reason: a failure paused the VM, not its owner."""
ALIVE = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.MIGRATING, VmState.STOPPING})


def _failed_on(launch: Launch, data: Mapping[str, Any]) -> str:
    """What BLOCK_IO_ERROR says, in words: the volume's name where the node is a disk's."""
    node = str(data.get("node-name") or data.get("device") or "a disk")
    name = next((disk.name for disk in launch.disks if f"disk{disk.index}" == node), node)
    words = f": {data['reason']}" if data.get("reason") else ""
    return f"I/O error on {name} ({data.get('operation', 'access')}){words}"


def _paused(why: str, name: str) -> str:
    return f"{PAUSED}{why}; see that its pool has room and answers, then: serai vm resume {name}"


async def _resume(machine: Machine, failing: asyncio.Event, *, failed_before: bool) -> None:
    """QEMU tries again at once what had failed: return when that fails too, or has had the time to."""
    failing.clear()
    await machine.cont()
    if failed_before:
        with contextlib.suppress(TimeoutError):
            async with time_limit(TRIED_AGAIN):
                await failing.wait()


async def _ask_guest(
    machine: Machine, name: str, ends: Sequence[asyncio.Event], timeout: float, *, was_paused: bool
) -> None:
    """Press the power button until one of `ends` is set; after `timeout` seconds, or without an answer, give it up."""
    try:
        async with time_limit(timeout):
            if was_paused:
                await machine.cont()
            while not any(event.is_set() for event in ends):
                # A guest that still boots does not hear it: the button is pressed again and again.
                await machine.powerdown()
                waiting = [asyncio.create_task(event.wait()) for event in ends]
                try:
                    await asyncio.wait(waiting, timeout=PRESS_AGAIN, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in waiting:
                        task.cancel()
    except TimeoutError:
        log.info("vm %s did not shut down within %g s: ending it by force", name, timeout)
    except SeraiError as error:
        log.info("vm %s cannot be asked to shut down (%s): ending it by force", name, error)


class VmAgent(KnownVm):
    """One VM on this host: what may be asked of it, and what becomes of it."""

    def __init__(self, kit: Kit, record: VmRecord, machine: Machine | None = None) -> None:
        super().__init__(kit, record)
        self.lock = asyncio.Lock()
        self._asked_to_end = False
        self._forced = asyncio.Event()
        """Set while a stop by force is asked for: one that waits for the guest waits no longer."""
        self._running_since: float | None = None
        self.last_end: End | None = None
        """How the last QEMU ended, as this agent saw it."""
        self._starting = False
        self._failed, self._failing = "", asyncio.Event()
        """The I/O error that stopped QEMU, until it is said; and that there is one."""
        self.on_gone: Callable[[End], None] | None = None
        if machine is not None:
            self.attach(machine)
        else:
            self._gone.set()

    # --- QEMU's process ---

    def attach(self, machine: Machine) -> None:
        """Watch this QEMU from now on."""
        self.machine = machine
        self._gone.clear()
        self._asked_to_end = False
        self._failed = ""
        machine.subscribe(self._on_event)
        self._kit.tasks.start(self._watch(machine))

    def _on_event(self, event: MachineEvent) -> None:
        if event.name == "BLOCK_IO_ERROR" and event.data.get("action") == "stop":
            self._failed = _failed_on(self.record.launch, event.data)
            self._failing.set()
            self._stopped_by_failure()
        elif event.name == "VSERPORT_CHANGE":
            self.guest_agent = bool(event.data.get("open"))

    def _stopped_by_failure(self) -> None:
        """A failure that came before the VM was said to run is not forgotten: it is said right after."""
        if self._failed and self.state is VmState.RUNNING:
            failed, self._failed = self._failed, ""
            self.follow(VmEvent.IO_ERROR, _paused(failed, self.record.launch.name))

    async def _watch(self, machine: Machine) -> None:
        exit_info = await machine.ended()
        await machine.close()
        self._gone.set()
        await self.on_end(exit_info)

    async def on_end(self, exit_info: ExitInfo) -> None:
        """QEMU is gone: end in the right state with a reason, and do what the restart policy says."""
        end = classify_end(
            code=exit_info.code,
            signal=exit_info.signal,
            shutdown=exit_info.shutdown,
            asked=self._asked_to_end,
            log_tail=exit_info.log_tail,
        )
        self.last_end = end
        if self._starting:
            return  # whoever starts it tells
        if self.on_gone is not None and (self.record.incoming is not None or self.record.outgoing is not None):
            self.on_gone(end)  # the move's own table decides what this means
            return
        if self.state in (VmState.DEFINED, VmState.STOPPED, VmState.CRASHED):
            return
        self.ended(end)

    def ended(self, end: End, **changes: Any) -> None:
        """Record the end, with `changes` of the record, and plan a restart where the policy wants one."""
        asked = self._asked_to_end or not self.record.wanted
        restarts = 0 if self._settled() else self.record.restarts
        delay = after_end(self.record.restart, end, asked=asked, restarts=restarts)
        self.follow(end.event, end.reason, wanted=delay is not None, restarts=restarts, **changes)
        if delay is not None:
            self._kit.tasks.start(self._restart_later(delay, end.reason))

    def _settled(self) -> bool:
        return self._running_since is not None and self._kit.clock.monotonic() - self._running_since > SETTLED

    async def _restart_later(self, delay: float, reason: str) -> None:
        while True:
            await self._kit.clock.sleep(delay)
            async with self.lock:
                if self._forgotten or not self.record.wanted or self.state not in (VmState.STOPPED, VmState.CRASHED):
                    return
                self.update(restarts=self.record.restarts + 1)
                try:
                    await self.run_again(f"restarted after: {reason}")
                    return
                except StaleError:
                    raise
                except SeraiError as error:
                    # What it needs may be on a host that is still coming up: policy wants it to run, so try again.
                    log.error("vm %s could not be restarted: %s", self.record.launch.name, error)
                    self.update(wanted=True)
            delay = self._next_delay()

    def _next_delay(self) -> float:
        return RESTART_DELAYS[min(self.record.restarts, len(RESTART_DELAYS) - 1)]

    def restart_soon(self, reason: str) -> None:
        """It is to run and does not: start it after the delay that its restarts so far have earned."""
        self.update(wanted=True)
        self._kit.tasks.start(self._restart_later(self._next_delay(), reason))

    # --- what may be asked ---

    async def start(self, body: StartVm) -> VmReport:
        """Start afresh under `body.epoch`; a VM that runs under it already is left as it is."""
        async with self.lock:
            if self.state in ALIVE and self.record.epoch == body.epoch and self.record.incoming is None:
                return self.current_report()
            follow(self.state, VmEvent.START, self.record.launch.name)  # refuses before anything is changed
            self._take_epoch(body.epoch)
            self.update(
                launch=body.launch,
                next_launch=None,
                epoch=body.epoch,
                restart=body.restart,
                autostart=body.autostart,
                autostart_order=body.autostart_order,
                restarts=0,
                wanted=True,
            )
            await self.run_again("")
            return self.current_report()

    def _take_epoch(self, epoch: int) -> None:
        claim = self._kit.records.claim(self.vm, epoch)
        if claim in (Claim.HELD, Claim.COMMITTED):
            return
        self._kit.records.put_claim(LeaseRecord(vm=self.vm, epoch=epoch, claim=Claim.HELD))

    async def run_again(self, reason: str) -> None:
        """Start QEMU from the record. The caller holds the lock. Raises what keeps it from starting, state recorded."""
        epoch = self._kit.records.may_run(self.vm)
        if epoch is None or epoch != self.record.epoch:
            raise StaleError(f"this host may not run VM {self.record.launch.name} (lease epoch {self.record.epoch})")
        if self.record.next_launch is not None:
            self.update(launch=self.record.next_launch, next_launch=None)
        self._starting, self.last_end = True, None
        try:
            await self._launch(reason)
        finally:
            self._starting = False
        if self._gone.is_set():  # it ended between `cont` and now
            self.ended(self.last_end or End(VmEvent.CRASHED, "QEMU ended at once", failure=True))
            return
        for vnic in self.record.launch.vnics:
            try:
                await self._kit.network.announce(vnic)
            except SeraiError as error:
                log.warning("vm %s: could not announce %s: %s", self.vm, vnic.mac, error)

    async def _launch(self, reason: str) -> None:
        crashed = self.state is VmState.CRASHED
        self.follow(VmEvent.START, reason)
        try:
            async with place(self._kit, self.record.launch, open_ports=True) as placing:
                machine = await self._kit.hypervisor.start(self.record.launch, placing, incoming=False, paused=True)
            self.attach(machine)
            await machine.cont()
        except Exception as error:
            await self._kill()
            words = self.last_end.reason if self.last_end is not None and not self._asked_to_end else str(error)
            # One that never ran has not crashed; one that had, and does not come up again, is no better for the try.
            event = VmEvent.CRASHED if crashed else VmEvent.START_FAILED
            self.follow(event, f"could not start: {words}", wanted=False)
            raise
        self._running_since = self._kit.clock.monotonic()
        self.follow(VmEvent.RUNS, reason)
        self._stopped_by_failure()

    async def _kill(self) -> None:
        if self.machine is not None and not self._gone.is_set():
            self._asked_to_end = True
            await self.machine.kill()
            await self._gone.wait()

    async def stop(self, *, force: bool, timeout: float) -> VmReport:
        """ACPI power button, then by force after `timeout` seconds. One that is down already stays down."""
        if force:
            self._forced.set()
        try:
            return await self._stop(force=force, timeout=timeout)
        finally:
            if force:
                self._forced.clear()

    async def _stop(self, *, force: bool, timeout: float) -> VmReport:
        async with self.lock:
            if self.state is VmState.MIGRATING or self.record.incoming is not None:
                follow(VmState.MIGRATING, VmEvent.STOP, self.record.launch.name)
            if self.machine is None or self._gone.is_set():
                if self.state in (VmState.STOPPED, VmState.CRASHED):
                    self.follow(VmEvent.STOP, "stopped", wanted=False)
                return self.current_report()
            self._asked_to_end = True
            was_paused = self.state is VmState.PAUSED
            self.follow(VmEvent.STOP, "shutting down", wanted=False)
            if not force:
                ends = (self._gone, self._forced)
                await _ask_guest(self.machine, self.record.launch.name, ends, timeout, was_paused=was_paused)
            if not self._gone.is_set():
                await self.machine.quit(timeout=5.0)
                await self._gone.wait()
            return self.current_report()

    async def signal(self, event: VmEvent) -> VmReport:
        """Pause, resume or reset."""
        async with self.lock:
            follow(self.state, event, self.record.launch.name)  # refuses before anything is done
            machine = self.live_machine()
            match event:
                case VmEvent.PAUSE:
                    await machine.stop()
                case VmEvent.RESUME:
                    self._failed = ""
                    await _resume(machine, self._failing, failed_before=self.record.reason.startswith(PAUSED))
                case VmEvent.RESET:
                    await machine.reset()
                case _:
                    raise ValueError(f"{event} is no signal")
            self.follow(event)
            self._stopped_by_failure()
            return self.current_report()

    def live_machine(self) -> Machine:
        """The running QEMU. Raises ConflictError when there is none."""
        if self.machine is None or self._gone.is_set():
            raise ConflictError(
                f"VM {self.record.launch.name} is not running here", field="state", value=self.state, remedy="Start it."
            )
        return self.machine

    async def end_qemu(self) -> None:
        """End QEMU for good, whatever it does; used once the VM is known to live elsewhere, or to be deleted."""
        self._asked_to_end = True
        if self.machine is not None and not self._gone.is_set():
            await self.machine.quit(timeout=2.0)
            await self._gone.wait()

    async def keep_running(self) -> None:
        """The VM is to run here, now: see that QEMU runs, its ports are open and the network knows."""
        while self.machine is not None and not self._gone.is_set() and self.state is VmState.RUNNING:
            try:
                state = await self.machine.run_state()
                if state in (RunState.IO_ERROR, RunState.INMIGRATE, RunState.INTERNAL_ERROR):
                    self.follow(VmEvent.IO_ERROR, _paused(f"QEMU is in {state}", self.record.launch.name))
                    return
                if state is not RunState.RUNNING and not self.lock.locked():
                    await self.machine.cont()
                for vnic in self.record.launch.vnics:
                    await self._kit.network.open_port(vnic.tap)
                    if state is not RunState.RUNNING:
                        await self._kit.network.announce(vnic)
                return
            except SeraiError as error:
                log.error("vm %s is to run here, and does not yet: %s", self.vm, error)
                await self._kit.clock.sleep(KEEP_RETRY)

    async def look_for_guest_agent(self) -> None:
        """After adoption: whether the guest's agent has its channel open; later changes come as events."""
        if self.machine is None or self._gone.is_set():
            return
        found = await self.machine.guest_agent_open()
        if found is not self.guest_agent:
            self.guest_agent = found
            self.report()

    @property
    def gone(self) -> asyncio.Event:
        """Set while no QEMU of this VM is on this host."""
        return self._gone

    async def settle_run_state(self) -> None:
        """After adoption: make the record say what QEMU is doing. Raises SeraiError if QEMU does not answer."""
        if self.machine is None:
            return
        found = await self.machine.run_state()
        self._running_since = self._kit.clock.monotonic()
        if found is not RunState.RUNNING and self.state is VmState.STARTING:
            await self.machine.cont()  # started by an agent that died before it could say so
            found = RunState.RUNNING
        event = VmEvent.FOUND_RUNNING if found is RunState.RUNNING else VmEvent.FOUND_PAUSED
        if follow(self.state, event, self.record.launch.name) is self.state:
            self.report()  # the reason for it stays
        else:
            self.follow(event, f"found {found} by a restarted agent")
