"""The VM agent: supervises one VM on this host. It is an actor inside the host agent's process.

It alone changes the VM, one action at a time: commands, restarts, and what a move asks of it (`begin_leaving` to
`vacate`). How the VM runs is `VmRunner`'s matter, what is recorded of it `RecordedState`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serai.core.lifecycle import End, VmEvent, follow
from serai.drivers.hypervisor.base import Machine
from serai.host.store import Incoming, Outgoing, VmRecord, terms
from serai.host.vm.reconfigure import check_runs_as_wanted, reconfigure
from serai.host.vm.runner import ALIVE, UNWATCHED, OnEnd, VmRunner, VmServices
from serai.host.vm.state import RecordedState
from serai.schema.commands.vm import ConfigureResult, ConfigureVm, StartVm
from serai.schema.errors import ConflictError, SeraiError, StaleError, UnavailableError
from serai.schema.ids import VmId
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import VmReport, VmState

log = logging.getLogger(__name__)


class VmAgent:
    """One VM on this host. `machine`: its QEMU, if an adopted one runs."""

    def __init__(self, services: VmServices, record: VmRecord, machine: Machine | None = None) -> None:
        self._services = services
        self._state = RecordedState(services.identity, services.store, services.clock, services.report, record)
        self._lock = asyncio.Lock()
        self._runner = VmRunner(services, self._state, self._restart, self._lock.locked)
        self._qemu = self._runner.qemu
        self._forced = asyncio.Event()
        """Set while a stop by force, or a release, is requested: a stop that waits for the guest waits no longer."""
        if machine is not None:
            self._runner.attach(machine)

    @property
    def vm(self) -> VmId:
        return self._state.vm

    @property
    def record(self) -> VmRecord:
        return self._state.record

    @property
    def has_qemu(self) -> bool:
        """Whether a QEMU of this VM runs on this host."""
        return self._qemu.machine is not None

    def current_report(self) -> VmReport:
        return self._state.current_report()

    # --- commands ---

    async def start(self, body: StartVm) -> VmReport:
        """Start under `body.epoch`. A VM that runs under it already is left as it is."""
        async with self._lock:
            store = self._services.store
            store.check_not_over(body.launch, body.epoch)
            self._check_here()
            if self._state.state in ALIVE and self.record.epoch == body.epoch and self.record.incoming is None:
                return self.current_report()
            follow(self._state.state, VmEvent.START, self._state.name)  # refuses before anything is changed
            store.put_document(body.document)
            if store.claim(self.vm, body.epoch) not in (Claim.HELD, Claim.COMMITTED):
                store.put_claim(LeaseRecord(vm=self.vm, epoch=body.epoch, claim=Claim.HELD))
            self._state.update(**terms(body), next_launch=None, epoch=body.epoch, restarts=0, wanted=True)
            await self._runner.start("")
            return self.current_report()

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
        async with self._lock:
            state = self._state.state
            if state is VmState.MIGRATING or self.record.incoming is not None:
                follow(VmState.MIGRATING, VmEvent.STOP, self._state.name)
            if self.has_qemu:
                self._qemu.asked_to_end = True
                self._state.follow(VmEvent.STOP, "shutting down", wanted=False)
                if not force:
                    await self._qemu.shut_down(self._state.name, self._forced, timeout, resume=state is VmState.PAUSED)
                await self._qemu.quit(timeout=5.0)
            elif state in (VmState.STOPPED, VmState.CRASHED):
                self._state.follow(VmEvent.STOP, "stopped", wanted=False)
            return self.current_report()

    async def signal(self, event: VmEvent) -> VmReport:
        """Pause, resume or reset."""
        async with self._lock:
            follow(self._state.state, event, self._state.name)  # refuses before anything is done
            machine = self._live_machine()
            match event:
                case VmEvent.PAUSE:
                    await machine.stop()
                case VmEvent.RESUME:
                    self._runner.check_may_run()
                    await self._runner.resume(machine)
                case VmEvent.RESET:
                    await machine.reset()
                case _:
                    raise ValueError(f"{event} is no signal")
            self._state.follow(event)
            self._runner.record_failure()
            return self.current_report()

    async def configure(self, body: ConfigureVm) -> ConfigureResult:
        """Bring the VM to `body.launch` as far as it goes live; keep the launch for the next start."""
        async with self._lock:
            self._check_here()
            before, after = self.record.launch, body.launch
            self._services.store.put_document(body.document)
            answer, launch = ConfigureResult(), after
            if self._qemu.machine is not None:
                answer = await reconfigure(self._qemu.machine, self._services.resources, before, after)
            if self._qemu.machine is not None:
                generation = before.generation if answer.pending else after.generation
                # The name is Serai's alone: no restart is needed for it.
                changes = {"generation": generation, "name": after.name}
                launch = self._qemu.machine.launch.model_copy(update=changes)
            wanted = after if launch != after else None
            self._state.update(**{**terms(body), "launch": launch, "next_launch": wanted})
            self._state.report()
            return answer

    async def release(self, epoch: int, reason: str) -> bool:
        """Give up `epoch` and all lower ones, in the journal first; whether the VM is gone with that.

        False: it is here under a later one. What is at work on the VM meets a lease that is over, and no guest that
        shuts down is waited for.
        """
        self._services.store.give_up(self.vm, epoch, reason)
        over = self.record.epoch <= epoch
        if over:
            self._forced.set()
        try:
            async with self._lock:
                if self.record.epoch > epoch:
                    return False
                self._state.update(wanted=False)
                await self._qemu.quit(timeout=2.0)
                self._state.forget()
                return True
        finally:
            if over:
                self._forced.clear()

    async def forget(self) -> None:
        """The VM is no longer this host's: delete its record and its folders."""
        self._state.forget()
        await self._services.resources.remove(self.vm)

    def _check_here(self) -> None:
        """A command that waited while the VM was given up is asked again, and finds what is here then."""
        if self._state.forgotten:
            raise UnavailableError(f"VM {self._state.name} was given up here meanwhile", field="vm", value=self.vm)

    def _live_machine(self) -> Machine:
        machine = self._qemu.machine
        if machine is None:
            raise ConflictError(
                f"VM {self._state.name} is not running here",
                field="state",
                value=self._state.state,
                remedy="Start it.",
            )
        return machine

    # --- without a command ---

    async def _restart(self, reason: str) -> bool:
        """Whether nothing is left to do: it runs, or is not to run any more."""
        async with self._lock:
            down = self._state.state in (VmState.STOPPED, VmState.CRASHED)
            if self._state.forgotten or not self.record.wanted or not down or not self._runner.may_run:
                return True
            self._state.update(restarts=self.record.restarts + 1)
            try:
                await self._runner.start(f"restarted after: {reason}")
            except SeraiError as error:
                # What it needs may be on a host that is still coming up, and its policy wants it to run.
                log.error("vm %s could not be restarted: %s", self._state.name, error)
                self._state.update(wanted=True)
                return False
            return True

    async def autostart(self) -> None:
        """Start after a reboot of the host, unless a command was quicker; if that fails, try again later."""
        try:
            async with self._lock:
                if not self.has_qemu and self.record.wanted and not self.record.moving:
                    await self._runner.start("started after its host's reboot")
        except SeraiError as error:
            log.error("vm %s could not be started after the reboot: %s", self._state.name, error)
            self._runner.restart_soon("its host was rebooted")

    async def settle(self, *, rebooted: bool, take_up: Callable[[VmAgent], Awaitable[None]]) -> None:
        """After the host agent's start: make record and QEMU agree; of a VM on the move that is for `take_up` to do.

        Raises SeraiError if QEMU does not answer.
        """
        if self.record.moving:
            await take_up(self)
        else:
            await self._runner.settle(rebooted=rebooted)
        await self._runner.look_for_guest_agent()

    # --- moves ---

    async def begin_leaving(self, move: Outgoing, on_end: OnEnd) -> Machine:
        """The VM is on its way to another host from here on. Raises ConflictError for a VM that cannot move now."""
        async with self._lock:
            machine = self._live_machine()
            check_runs_as_wanted(self.record)
            claim = self._services.store.claim(self.vm, move.epoch)
            if claim is not None:
                raise StaleError(f"epoch {move.epoch} of VM {self._state.name} is {claim} here: it is not on offer")
            self._state.follow(VmEvent.MIGRATE, f"moving to {move.destination}", outgoing=move)
            self._runner.on_move_end = on_end
            return machine

    async def never_sends(self, record: LeaseRecord) -> bool:
        """Promise that this offer's last state is not sent. False while it is under way: it may have been."""
        async with self._lock:
            move = self.record.outgoing
            if move is not None and move.epoch == record.epoch:
                return False
            self._services.store.put_claim(record)
            return True

    @property
    def may_run(self) -> bool:
        """Whether this host's journal lets the VM run here, under the epoch that it has."""
        return self._runner.may_run

    def sent(self, move: Outgoing) -> None:
        """All state was sent: from here on only the destination's journal may let the VM go on here."""
        self._state.update(outgoing=move.model_copy(update={"sent": True}))

    async def stay(self, reason: str) -> None:
        """The move failed before its commit point: the VM goes on here, or has ended here."""
        self._runner.on_move_end = None
        if self.has_qemu:
            self._state.follow(VmEvent.MIGRATE_ENDED, f"stayed: {reason}", outgoing=None)
            await self._runner.keep_running()
        else:
            self._runner.ended(self._qemu.last_end or End(VmEvent.CRASHED, reason, failure=True), outgoing=None)

    async def receive(self, on_end: OnEnd) -> Machine:
        """Start a QEMU that waits for the VM's state, its ports closed."""
        async with self._lock:
            self._runner.on_move_end = on_end
            return await self._runner.start_qemu(incoming=True)

    def listening(self, move: Incoming, port: int) -> None:
        """The QEMU that waits for the state listens on this port."""
        self._state.update(incoming=move.model_copy(update={"port": port}))

    def resume_move(self, on_end: OnEnd) -> Machine | None:
        """A new agent takes the move up. Returns the QEMU that it adopted, if one runs."""
        self._runner.on_move_end = on_end
        return self._qemu.machine

    def arrive(self, source: str) -> None:
        """The move to this host is committed: the VM is this host's, and its end from here on is the VM's own."""
        self._runner.on_move_end = None
        self._state.follow(VmEvent.ARRIVED, f"arrived from {source}", incoming=None)
        if self.has_qemu:
            self._services.tasks.start(self._runner.keep_running())
        else:
            self._runner.ended(self._qemu.last_end or End(VmEvent.CRASHED, UNWATCHED, failure=True))

    async def vacate(self) -> None:
        """End QEMU, also one that is being started: the VM lives on another host. That is no end of the VM."""
        self._runner.on_move_end = lambda _end: None
        async with self._lock:
            await self._qemu.quit(timeout=2.0)
