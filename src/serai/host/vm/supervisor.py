"""Owns the VM agents of a host: commands find their VM here, and a new host agent adopts what still runs.

At start, for each VM of the journal: a QEMU that lives is adopted through its QMP socket; one that is gone ended while
nobody watched (a crash), unless the machine itself was rebooted, when autostart decides, in order. A QEMU that does not
answer is asked again until it does or is gone; its VM is called silent until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from serai.host.store import VmRecord, terms
from serai.host.vm.agent import VmAgent
from serai.host.vm.runner import VmServices
from serai.schema.commands.vm import ReleaseVm, StartVm, StopVm
from serai.schema.document import VmDocument
from serai.schema.errors import NotFoundError, SeraiError, UnavailableError
from serai.schema.ids import VmId
from serai.schema.lease import Claim
from serai.schema.vm import VmReport, VmState

log = logging.getLogger(__name__)

TakeUp = Callable[[VmAgent], Awaitable[None]]

AUTOSTART_PATIENCE = 30.0
"""Seconds that an autostart after a reboot waits for the controller."""
ADOPT_RETRY = 2.0
"""Seconds between two tries to adopt a QEMU that does not answer."""


def machine_boot_id() -> str:
    """The kernel's id of this boot: a new one after each reboot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Supervisor:
    """All VMs of one host."""

    def __init__(self, services: VmServices) -> None:
        self._services = services
        self._store = services.store
        self._agents: dict[str, VmAgent] = {}
        self._silent: set[str] = set()
        self._adopting: dict[str, asyncio.Task[None]] = {}
        """By VM: the first try to adopt it."""
        self._taking_over: asyncio.Task[None] | None = None
        self._told = asyncio.Event()
        """Set once the controller has said what is over here."""
        self._answered = False
        self._take_up: TakeUp

    # --- which VMs there are ---

    def agent(self, vm: str) -> VmAgent:
        """The agent of a VM. Raises NotFoundError if it is not on this host, UnavailableError if it is silent."""
        self._check_silent(vm)
        found = self._agents.get(vm)
        if found is None:
            raise NotFoundError(f"the VM is not on {self._services.identity.name}", field="vm", value=vm)
        return found

    def find(self, vm: str) -> VmAgent | None:
        """The agent of a VM, if it is on this host and not silent."""
        return self._agents.get(vm)

    def add(self, record: VmRecord) -> VmAgent:
        """Record a VM that is new on this host."""
        self._store.put_vm(record)
        agent = self._agents[record.launch.vm] = VmAgent(self._services, record)
        return agent

    async def remove(self, agent: VmAgent) -> None:
        """Forget a VM that is no longer this host's. Idempotent; one that has come back under a new agent stays."""
        if self._agents.get(agent.vm) is agent:
            del self._agents[agent.vm]
            await agent.forget()
            self._store.prune_leases(agent.vm)

    def document(self, vm: str) -> VmDocument:
        """What the controller keeps here of a VM. Raises NotFoundError."""
        found = self._store.document(vm)
        if found is None:
            raise NotFoundError(f"{self._services.identity.name} has no document of the VM", field="vm", value=vm)
        return found

    def reports(self) -> list[VmReport]:
        """A report on each VM that is not silent."""
        return [agent.current_report() for agent in self._agents.values()]

    def knows(self, vm: str) -> bool:
        """Whether the VM is one of this host's, silent or not."""
        return vm in self._agents or vm in self._silent

    def silent(self) -> list[str]:
        """VMs whose QEMU may be there and has not answered yet."""
        return sorted(self._silent)

    @property
    def moving(self) -> bool:
        """Whether any VM is on the move."""
        return any(agent.record.moving for agent in self._agents.values())

    # --- start of the host agent ---

    def take_over(self, take_up: TakeUp, *, boot: str) -> None:
        """Begin to adopt what runs, to settle what ended meanwhile, and to autostart after a reboot.

        `boot`: the machine's present one. A reboot is one until its autostart is over, also for an agent that starts
        meanwhile: it asks the controller first, too.
        `take_up` continues the move of an adopted VM. Each VM is adopted by itself: a silent one delays only commands
        for it.
        """
        self._take_up = take_up
        rebooted = self._store.boot() not in (None, boot)
        for vm in self._store.vms():
            self._silent.add(vm)
            self._adopting[vm] = self._services.tasks.start(self._adopt_first(vm, rebooted=rebooted))
        tries = list(self._adopting.values())
        self._taking_over = self._services.tasks.start(self._take_over(tries, boot, rebooted=rebooted))

    async def _take_over(self, tries: list[asyncio.Task[None]], boot: str, *, rebooted: bool) -> None:
        await asyncio.gather(*tries)
        await self._log_strays()
        if rebooted:
            self._services.tasks.start(self._autostart(boot))
        else:
            self._store.put_boot(boot)

    async def taken_over(self) -> None:
        """Return once all that `take_over` began was tried; raises what went wrong with it as a whole."""
        if self._taking_over is not None:
            await asyncio.shield(self._taking_over)

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
        try:
            await self._adopt(vm, rebooted=rebooted)
        finally:
            del self._adopting[vm]
        if vm in self._silent:
            self._services.tasks.start(self._adopt_later(vm))

    async def _adopt_later(self, vm: str) -> None:
        while vm in self._silent:
            await self._services.clock.sleep(ADOPT_RETRY)
            if vm in self._silent:
                await self._adopt(vm, rebooted=False)

    async def _adopt(self, vm: str, *, rebooted: bool) -> None:
        """One VM. Whatever is wrong with it affects neither the other VMs nor the host agent."""
        try:
            machine = await self._services.hypervisor.adopt(vm, self._services.resources.run_dir(vm))
        except SeraiError as error:
            log.error("vm %s: QEMU is there but does not answer: %s", vm, error)
            return
        if vm not in self._silent:  # another try was quicker
            return
        self._silent.discard(vm)
        record = self._store.vm(vm)
        if record is None:
            return
        agent = self._agents[vm] = VmAgent(self._services, record, machine)
        try:
            await agent.settle(rebooted=rebooted, take_up=self._take_up)
            given_up = self._store.claim(vm, record.epoch) is Claim.RELEASED
            # An earlier agent died while it gave the VM up.
            if given_up and not record.moving and await agent.release(record.epoch, "given up"):
                await self.remove(agent)
        except SeraiError as error:
            log.error("vm %s could not be taken over as it should: %s", record.launch.name, error)

    def may_autostart(self) -> None:
        """The controller knows that this host is back, and has nothing left for it to give up."""
        self._told.set()

    def controller_answered(self) -> None:
        """There is a controller: from now on its word alone lets VMs start, also after a refusal."""
        self._answered = True

    async def _autostart(self, boot: str) -> None:
        """Start what should run, once the controller has said what is over: this host may have been fenced meanwhile.

        Without a controller, VMs with a disk start after a while: the target refuses an epoch that is over, and a VM
        whose disk is in a pool of this host ran nowhere else. One without disks has nothing that guards it. A
        controller that refuses this agent, or has told it to give something up, is waited for.
        """
        patience = self._services.tasks.start(self._services.clock.sleep(AUTOSTART_PATIENCE))
        told = self._services.tasks.start(self._told.wait())
        await asyncio.wait({patience, told}, return_when=asyncio.FIRST_COMPLETED)
        patience.cancel()
        if not told.done():
            if not self._answered:
                log.warning("the controller does not answer: VMs with disks are started without it")
            await self._autostart_those(lambda agent: bool(agent.record.launch.disks) and not self._answered)
            await told
        await self._autostart_those(lambda agent: True)
        self._store.put_boot(boot)

    async def _autostart_those(self, which: Callable[[VmAgent], bool]) -> None:
        waiting = [a for a in self._agents.values() if a.record.autostart and a.record.wanted and not a.has_qemu]
        for agent in sorted(waiting, key=lambda found: (found.record.autostart_order, found.record.launch.name)):
            if which(agent):
                await agent.autostart()

    # --- QEMUs that do not answer, or that the journal does not know ---

    def _check_silent(self, vm: str) -> None:
        if vm in self._silent:
            raise UnavailableError(
                f"the VM's QEMU on {self._services.identity.name} does not answer",
                field="vm",
                value=vm,
                remedy="Wait: it is asked again and again, its storage may be away. Or end it: serai vm stop --force.",
            )

    async def _end_silent(self, vm: str) -> None:
        """End a QEMU that does not answer, and take its VM over as one that is down. One on the move is left alone."""
        record = self._store.vm(vm)
        if record is None or record.moving:
            return
        self._store.put_vm(record.model_copy(update={"wanted": False}))
        for found in await self._services.hypervisor.processes():
            if found.vm == vm and vm in self._silent:
                log.warning("vm %s: process %d does not answer, and is ended by force", vm, found.pid)
                await found.kill()
        # If the first try is still under way, it sees the end; otherwise the next one would come later.
        await self.adopted(vm)
        if vm in self._silent:
            await self._adopt(vm, rebooted=False)

    async def strays(self) -> list[VmId]:
        """The VMs of QEMUs that run here and that the journal does not know."""
        found = {process.vm for process in await self._services.hypervisor.processes()}
        return [VmId(vm) for vm in sorted(found) if self._store.vm(vm) is None]

    async def _log_strays(self) -> None:
        """QEMUs under no known lease, as after a loss of the journal: without this nobody would hear of them."""
        for found in await self._services.hypervisor.processes():
            if self._store.vm(found.vm) is None:
                log.error(
                    "VM %s runs here as process %d, and the journal does not know it: it is left alone. "
                    "'serai vm stop --force' ends it.",
                    found.vm,
                    found.pid,
                )

    async def end_strays(self) -> None:
        """End every QEMU that the journal does not know: it was started under a journal that is gone."""
        for vm in await self.strays():
            await self._end_strays(vm)

    async def _end_strays(self, vm: str) -> None:
        """End QEMUs of a VM that the journal does not know."""
        for found in await self._services.hypervisor.processes():
            if found.vm != vm or vm in self._agents:  # one that was started meanwhile is its agent's
                continue
            log.warning("vm %s: process %d runs it here and no record knows it: ending it", vm, found.pid)
            await found.kill()
            # Cleans up after a process that is gone.
            await self._services.hypervisor.adopt(vm, self._services.resources.run_dir(vm))
            await self._services.resources.remove(vm)

    # --- commands ---

    async def stop(self, body: StopVm) -> VmReport:
        """Shut down, or by force, which also ends a QEMU that does not answer a new agent."""
        if body.force and body.vm in self._silent:
            await self._end_silent(body.vm)
        return await self.agent(body.vm).stop(force=body.force, timeout=body.timeout)

    async def start(self, body: StartVm) -> VmReport:
        """Start under `body.epoch`, also a VM that is new on this host. Raises StaleError for an epoch that is over."""
        vm = body.launch.vm
        self._check_silent(vm)
        self._store.check_not_over(body.launch, body.epoch)
        agent = self._agents.get(vm)
        if agent is None:
            agent = self.add(VmRecord(**terms(body), epoch=body.epoch, state=VmState.DEFINED))
        return await agent.start(body)

    async def release(self, body: ReleaseVm) -> None:
        """Give up `epoch` and all lower ones: end QEMU, also one of no record or that does not answer; forget the VM.

        The journal says so first: nothing starts or resumes the VM from then on. Idempotent.
        """
        if body.vm not in self._agents:
            self._store.give_up(body.vm, body.epoch, body.reason)
        record = self._store.vm(body.vm)
        if body.vm in self._silent and record is not None and record.epoch <= body.epoch:
            await self._end_silent(body.vm)
        self._check_silent(body.vm)
        agent = self._agents.get(body.vm)
        if agent is None:
            await self._end_strays(body.vm)
        elif await agent.release(body.epoch, body.reason):
            await self.remove(agent)
        self._store.prune_leases(body.vm)
