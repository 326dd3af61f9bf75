"""A host's table of VM agents: commands find their VM here, and a restarted agent adopts what still runs.

At start, for each VM of the journal: a QEMU that lives is adopted through its QMP socket; one that is gone ended while
nobody watched (a crash), unless the machine itself was rebooted, when autostart decides, in order.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import shutil
from pathlib import Path

from serai.core.lifecycle import End, VmEvent
from serai.host.configuring import configure
from serai.host.kit import Kit
from serai.host.moves import Moves
from serai.host.records import VmRecord
from serai.host.vm import ALIVE, VmAgent
from serai.schema.commands.vm import ConfigureResult, ConfigureVm, ReleaseVm, StartVm, StopVm
from serai.schema.errors import NotFoundError, SeraiError, StaleError, UnavailableError
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import VmReport, VmState

log = logging.getLogger(__name__)

ADOPT_RETRY = 2.0


def machine_boot_id() -> str:
    """The kernel's id of this boot: a new one after each reboot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Vms:
    """All VMs of this host."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self.agents: dict[str, VmAgent] = {}
        self._silent: set[str] = set()
        """See `silent`."""
        self._adopting: dict[str, asyncio.Task[None]] = {}
        """By VM: the first try to adopt it."""
        self._taking: asyncio.Task[None] | None = None
        self.moves = Moves(kit, self.agents)

    def agent(self, vm: str) -> VmAgent:
        """The agent of a VM. Raises NotFoundError when the VM is not on this host."""
        self._check_silent(vm)
        found = self.agents.get(vm)
        if found is None:
            raise NotFoundError(f"the VM is not on {self._kit.host}", field="vm", value=vm)
        return found

    def reports(self) -> list[VmReport]:
        return [agent.current_report() for agent in self.agents.values()]

    def knows(self, vm: str) -> bool:
        """Whether the VM is one of this host's, also if its QEMU has not answered yet."""
        return vm in self.agents or vm in self._silent

    def silent(self) -> list[str]:
        """VMs whose QEMU may be there and has not answered yet."""
        return sorted(self._silent)

    # --- start of the agent ---

    def take_over(self, *, rebooted: bool) -> None:
        """Begin to adopt what runs, settle what ended meanwhile, take up moves, and autostart after a reboot.

        Each VM is adopted by itself: one whose QEMU does not answer keeps nobody waiting but who asks for it.
        """
        for vm in self._kit.records.vms():
            self._silent.add(vm)
            task = self._adopting[vm] = self._kit.tasks.start(self._adopt_first(vm, rebooted=rebooted))
            task.add_done_callback(functools.partial(self._tried, vm))
        self._taking = self._kit.tasks.start(self._take_over(list(self._adopting.values()), rebooted=rebooted))

    def _tried(self, vm: str, _: asyncio.Task[None]) -> None:
        del self._adopting[vm]

    async def _take_over(self, adopting: list[asyncio.Task[None]], *, rebooted: bool) -> None:
        await asyncio.gather(*adopting)
        await self._tell_strays()
        if rebooted:
            await self._autostart()

    async def _tell_strays(self) -> None:
        """Where a journal was lost QEMUs may run under no lease that we know: nobody would hear of them else."""
        for found in await self._kit.hypervisor.processes():
            if self._kit.records.vm(found.vm) is None:
                log.error(
                    "VM %s runs here as process %d, and the journal does not know it: it is left alone. "
                    "'serai vm stop --force' ends it.",
                    found.vm,
                    found.pid,
                )

    async def _end_strays(self, vm: str) -> None:
        """End QEMUs of a VM that the journal does not know."""
        for found in await self._kit.hypervisor.processes():
            # One that was started meanwhile is its agent's.
            if found.vm != vm or vm in self.agents:
                continue
            log.warning("vm %s: process %d runs it here and no record knows it: ending it", vm, found.pid)
            await found.kill()
            folder = self._kit.paths.vm_run(vm)
            await self._kit.hypervisor.adopt(vm, folder)  # clears up after one that is gone
            for left in (folder, self._kit.paths.vm_state(vm)):
                await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)

    async def taken_over(self) -> None:
        """Return once all that `take_over` began was tried; raises what went wrong with it as a whole."""
        if self._taking is not None:
            await asyncio.shield(self._taking)

    @property
    def adopting(self) -> bool:
        """Of some VM it is not known yet whether it is here."""
        return bool(self._adopting)

    async def adopted(self, vm: str, timeout: float | None = None) -> bool:
        """Wait for the first try to adopt this VM; whether it is over within `timeout` seconds."""
        task = self._adopting.get(vm)
        if task is not None:
            await asyncio.wait({task}, timeout=timeout)
        return vm not in self._adopting

    async def _adopt_first(self, vm: str, *, rebooted: bool) -> None:
        await self._adopt(vm, rebooted=rebooted)
        if vm in self._silent:
            self._kit.tasks.start(self._adopt_later(vm))

    async def _adopt(self, vm: str, *, rebooted: bool) -> None:
        """One VM; whatever is wrong with it keeps neither the others nor the agent from working."""
        try:
            machine = await self._kit.hypervisor.adopt(vm, self._kit.paths.vm_run(vm))
        except SeraiError as error:
            log.error("vm %s: QEMU is there but does not answer: %s", vm, error)
            return
        if vm not in self._silent:  # another try was quicker
            return
        self._silent.discard(vm)
        record = self._kit.records.vm(vm)
        if record is None:
            return
        agent = self.agents[vm] = VmAgent(self._kit, record, machine)
        try:
            await self._settle(agent, rebooted=rebooted)
            await agent.look_for_guest_agent()
        except SeraiError as error:
            log.error("vm %s could not be taken over as it should: %s", record.launch.name, error)

    async def _adopt_later(self, vm: str) -> None:
        """A silent QEMU is not dead: ask until it answers or is gone."""
        while vm in self._silent:
            await self._kit.clock.sleep(ADOPT_RETRY)
            if vm in self._silent:
                await self._adopt(vm, rebooted=False)

    async def _end_silent(self, vm: str) -> None:
        """End a QEMU that does not answer, and take its VM over as one that is down. One on the move is left alone."""
        record = self._kit.records.vm(vm)
        if record is None or record.incoming is not None or record.outgoing is not None:
            return
        self._kit.records.put_vm(record.model_copy(update={"wanted": False}))
        for found in await self._kit.hypervisor.processes():
            if found.vm == vm and vm in self._silent:
                log.warning("vm %s: process %d does not answer, and is ended by force", vm, found.pid)
                await found.kill()
        # The first try, if it is still on, sees the end; else the next one would come later.
        await self.adopted(vm)
        if vm in self._silent:
            await self._adopt(vm, rebooted=False)

    def _check_silent(self, vm: str) -> None:
        if vm in self._silent:
            raise UnavailableError(
                f"the VM's QEMU on {self._kit.host} does not answer",
                field="vm",
                value=vm,
                remedy="Wait: it is asked again and again, its storage may be away. Or end it: serai vm stop --force.",
            )

    async def _settle(self, agent: VmAgent, *, rebooted: bool) -> None:
        record = agent.record
        if record.incoming is not None or record.outgoing is not None:
            await self.moves.take_up(agent)
        elif agent.machine is not None:
            if self._kit.records.may_run(agent.vm) is None:
                log.error("vm %s runs here without a lease: ending it", record.launch.name)
                await agent.end_qemu()
            else:
                await agent.settle_run_state()
                self._kit.tasks.start(agent.keep_running())
        elif agent.state in ALIVE or agent.state is VmState.STARTING:
            if rebooted:
                agent.follow(VmEvent.CRASHED, "its host was rebooted", restarts=0)
            elif not record.wanted:
                agent.ended(End(VmEvent.STOPPED_BY_FORCE, "stopped while no agent watched it", failure=False))
            else:
                agent.ended(End(VmEvent.CRASHED, "QEMU ended while no agent watched it", failure=True))
        elif record.wanted and record.state in (VmState.CRASHED, VmState.STOPPED) and not rebooted:
            agent.restart_soon(record.reason)  # an earlier agent was about to

    async def _autostart(self) -> None:
        waiting = [a for a in self.agents.values() if a.record.autostart and a.record.wanted and a.gone.is_set()]
        for agent in sorted(waiting, key=lambda found: (found.record.autostart_order, found.record.launch.name)):
            if agent.record.incoming is not None or agent.record.outgoing is not None:
                continue
            try:
                async with agent.lock:
                    if agent.gone.is_set() and agent.record.wanted:  # nobody else was quicker
                        await agent.run_again("started after its host's reboot")
            except SeraiError as error:
                log.error("vm %s could not be started after the reboot: %s", agent.record.launch.name, error)
                agent.restart_soon("its host was rebooted")

    # --- commands ---

    async def stop(self, body: StopVm) -> VmReport:
        """Shut down, or by force, which also ends a QEMU that does not answer a new agent."""
        if body.force and body.vm in self._silent:
            await self._end_silent(body.vm)
        return await self.agent(body.vm).stop(force=body.force, timeout=body.timeout)

    async def start(self, body: StartVm) -> VmReport:
        self._check_silent(body.launch.vm)
        rows = [row for row in self._kit.records.leases(body.launch.vm) if row.claim is not Claim.ABANDONED]
        if any(row.epoch > body.epoch or (row.epoch == body.epoch and row.claim is Claim.RELEASED) for row in rows):
            raise StaleError(
                f"epoch {body.epoch} of VM {body.launch.name} is over here", field="epoch", value=body.epoch
            )
        agent = self.agents.get(body.launch.vm)
        if agent is None:
            agent = self._new(body)
        return await agent.start(body)

    def _new(self, body: StartVm) -> VmAgent:
        record = VmRecord(
            launch=body.launch,
            epoch=body.epoch,
            restart=body.restart,
            autostart=body.autostart,
            autostart_order=body.autostart_order,
            state=VmState.DEFINED,
            wanted=True,
        )
        self._kit.records.put_vm(record)
        agent = VmAgent(self._kit, record)
        self.agents[body.launch.vm] = agent
        return agent

    async def release(self, body: ReleaseVm) -> None:
        """Give up `epoch` and all lower ones: end QEMU, also one of no record or that does not answer; forget the VM.

        Idempotent.
        """
        record = self._kit.records.vm(body.vm)
        if body.vm in self._silent and record is not None and record.epoch <= body.epoch:
            await self._end_silent(body.vm)
        self._check_silent(body.vm)
        agent = self.agents.get(body.vm)
        if agent is not None and agent.record.epoch <= body.epoch:
            async with agent.lock:
                agent.update(wanted=False)
                await agent.end_qemu()
            if self.agents.get(body.vm) is agent:
                del self.agents[body.vm]
            await agent.forget()
        elif agent is None and not self._given_up(body):
            await self._end_strays(body.vm)
        for row in self._kit.records.leases(body.vm):
            if row.epoch <= body.epoch and row.claim in (Claim.HELD, Claim.COMMITTED):
                self._kit.records.put_claim(row.model_copy(update={"claim": Claim.RELEASED, "reason": body.reason}))
        if self._kit.records.claim(body.vm, body.epoch) is None:
            self._kit.records.put_claim(
                LeaseRecord(vm=body.vm, epoch=body.epoch, claim=Claim.RELEASED, reason=body.reason)
            )
        self._kit.records.prune_leases(body.vm)

    def _given_up(self, body: ReleaseVm) -> bool:
        """Whether it is so already, as after each move away: QEMU ended before the journal said so."""
        rows = self._kit.records.leases(body.vm)
        return any(row.epoch >= body.epoch and row.claim is Claim.RELEASED for row in rows)

    async def configure(self, body: ConfigureVm) -> ConfigureResult:
        """See `configuring.configure`."""
        return await configure(self._kit, self.agent(body.launch.vm), body)
