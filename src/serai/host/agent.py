"""The host agent: commands in, status out.

A command is carried out once per id: its answer is journaled before it is sent, a repeat gets the same answer, and a
repeat while it runs joins it. One that takes longer than `HOLD` is answered `running`; the asker asks again. A
generation older than the newest that was carried out for the same key is refused.

It joins the bus before it has adopted the VMs that it finds. What is asked of one of them waits until that one was
tried; a full report, which would be taken to say that it is not here, until all were.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from pydantic import ValidationError

from serai.drivers.network.base import NetworkDriver
from serai.host.executor import Executor
from serai.host.identity import HostIdentity
from serai.host.migration.manager import MigrationManager
from serai.host.storage.pools import HostPools
from serai.host.store import HostStore
from serai.host.vm.supervisor import Supervisor
from serai.lib.bus import Bus, Message, Subscription
from serai.lib.clock import Clock
from serai.lib.tasks import Tasks
from serai.schema.commands.envelope import HOLD, CommandProgress, Reply, Request
from serai.schema.commands.migration import AbandonMigration, Verdict, VerdictAsk
from serai.schema.commands.vm import ReleaseVm
from serai.schema.encoding import encode, invalid, parse
from serai.schema.errors import ErrorInfo, SeraiError, StaleError, UnavailableError
from serai.schema.host import HostFacts
from serai.schema.ids import PoolId, VmId
from serai.schema.lease import Claim
from serai.schema.reports import HostReport, Introduction, LeaseEnd, ReportReceipt, Welcome
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport

log = logging.getLogger(__name__)

HELLO_PERIOD = 0.5
"""Seconds between two hellos to a controller that does not answer yet: host and controller may boot together."""
HELLOS = 3
"""Introductions in a row: after what is over was given up another one shows it."""
CONTROLLER_PATIENCE = 5.0
"""Seconds that the controller may take to answer a hello or a report."""
REPORT_PERIOD = 5.0
"""Seconds between two full reports; the controller calls a host silent after three of them."""
ADOPTION_PATIENCE = 10.0
"""Seconds after the start that the first full report waits for VMs whose QEMU does not answer: below the silence after
which the controller calls the host offline."""
VERDICT_HOLD = 1.0
"""Seconds that a question for a verdict is kept open. Short: one that dies with this agent is asked again only after
its asker's own timeout, and a VM stands still for as long."""


class VmReports:
    """Publishes what the VM agents of one host report."""

    def __init__(self, host: str, bus: Bus, tasks: Tasks) -> None:
        self._host = host
        self._bus = bus
        self._tasks = tasks

    def publish(self, report: VmReport) -> None:
        """One VM's report, without waiting. If it is lost, the next full report says it again."""
        self._tasks.start(self._publish(report))

    async def _publish(self, report: VmReport) -> None:
        try:
            await self._bus.publish(Subjects.vm_report(self._host, report.vm), encode(report))
        except UnavailableError as error:
            log.debug("report of %s waits for the bus: %s", report.vm, error)


class HostAgent:
    """Joins the bus for one host."""

    def __init__(
        self,
        *,
        identity: HostIdentity,
        bus: Bus,
        clock: Clock,
        tasks: Tasks,
        store: HostStore,
        vms: Supervisor,
        moves: MigrationManager,
        pools: HostPools,
        network: NetworkDriver,
        executor: Executor,
    ) -> None:
        self._identity = identity
        self._name = identity.name
        self._bus = bus
        self._clock = clock
        self._tasks = tasks
        self._store = store
        self._vms = vms
        self._moves = moves
        self._pools = pools
        self._network = network
        self._executor = executor
        self._running: dict[str, asyncio.Task[Reply]] = {}
        self._subscriptions: list[Subscription] = []
        self._welcomed = False
        self._refusal = ""
        """Why the controller refuses this agent, as long as it does."""
        self._refused = False
        """The controller's last answer to a hello was a refusal: the agent that counts is another one."""
        self._joined = clock.monotonic()

    async def join(self) -> None:
        """Take commands from now on, say hello, and report every few seconds and after each reconnect."""
        self._joined = self._clock.monotonic()
        self._subscriptions = [
            await self._bus.subscribe(Subjects.host_command(self._name), self._on_command),
            await self._bus.subscribe(Subjects.vm_command(self._name, "*"), self._on_vm_command),
            await self._bus.subscribe(Subjects.verdict(self._name, "*"), self._on_verdict),
        ]
        self._bus.on_reconnect(self._hello_and_report)
        self._tasks.start(self._report_forever(), "report")

    def renew(self, facts: HostFacts) -> None:
        """Tell these facts with the next report, if they are news."""
        if facts != self._identity.facts:
            self._identity.facts, self._welcomed = facts, False

    async def leave(self) -> None:
        """Stop taking commands; VMs go on."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()

    # --- reports ---

    def _holds(self, vm: str) -> bool:
        return self._vms.knows(vm) and self._store.may_run(vm) is not None

    async def _report_forever(self) -> None:
        while True:
            try:
                await self._hello_and_report()
            except Exception:
                # A host whose reports end is taken for dead; one that cannot be made now may be in a few seconds.
                log.exception("the report of this host failed")
            settled = self._welcomed and self._is_whole()
            await self._clock.sleep(REPORT_PERIOD if settled or self._refusal else HELLO_PERIOD)

    def _is_whole(self) -> bool:
        """A full report would tell of all VMs, or of those of which nothing can be said in reasonable time."""
        late = self._clock.monotonic() > self._joined + ADOPTION_PATIENCE
        return late or not self._vms.adopting

    async def _hello_and_report(self) -> None:
        try:
            if not self._welcomed:
                await self._hello()
            if self._is_whole() and not await self.report_all():
                self._welcomed = False
                await self._hello()
            self._refusal = ""
        except UnavailableError as error:
            self._welcomed = False
            log.debug("the controller does not answer: %s", error)
        except SeraiError as error:
            self._welcomed = False
            if self._refusal != str(error):
                self._refusal = str(error)
                log.error("the controller refuses this agent: %s", error)

    async def _hello(self) -> None:
        """Introduce this agent; what is over here is given up first, and then it introduces itself again."""
        for _ in range(HELLOS):
            said = self._identity.introduce(await self._vms.strays())
            welcome = await self._ask_welcome(said)
            if not welcome.give_up and not welcome.end_strays:
                self._welcomed = said.facts is self._identity.facts
                self._vms.may_autostart()
                return
            try:
                await self._give_up(welcome)
            except SeraiError as error:
                log.error("what is over on this host is not given up yet: %s", error)
                return

    async def _ask_welcome(self, said: Introduction) -> Welcome:
        try:
            answer = await self._bus.request(Subjects.hello(self._name), encode(said), timeout=CONTROLLER_PATIENCE)
            welcome = parse(Welcome, answer, "the answer to a hello")
        except UnavailableError:
            raise
        except SeraiError:
            self._vms.controller_answered()
            self._refused = True
            raise
        self._vms.controller_answered()
        self._refused = False
        return welcome

    async def _give_up(self, welcome: Welcome) -> None:
        """All at once: one that cannot be given up yet delays no other."""
        ends = sorted(welcome.give_up, key=lambda end: end.epoch)
        over = {end.vm: end.epoch for end in ends if end.offer_id is None}
        results = await asyncio.gather(
            *(self._release(vm, epoch) for vm, epoch in over.items()),
            *(self._turn_down(end, end.offer_id) for end in ends if end.offer_id is not None),
            return_exceptions=True,
        )
        if welcome.end_strays:
            await self._vms.end_strays()
        for result in results:
            if result is not None:
                raise result

    async def _release(self, vm: VmId, epoch: int) -> None:
        log.warning("vm %s: epoch %d is over on this host: giving it up", vm, epoch)
        await self._vms.adopted(vm)
        await self._vms.release(ReleaseVm(vm=vm, epoch=epoch, reason="it was over when this host came back"))

    async def _turn_down(self, end: LeaseEnd, offer: str) -> None:
        """An offer that was committed meanwhile stays: the next hello says so."""
        body = AbandonMigration(vm=end.vm, epoch=end.epoch, offer_id=offer, reason="it was over, said the controller")
        await self._vms.adopted(end.vm)
        verdict = await self._moves.abandon(body)
        log.warning("vm %s: the offer of epoch %d is over: it is %s here", end.vm, end.epoch, verdict.claim)

    async def report_all(self) -> bool:
        """Everything that this host has, at once; whether the controller believes it."""
        report = HostReport(
            host=self._name,
            incarnation=self._identity.incarnation,
            sequence=next(self._identity.numbers),
            time=self._clock.now(),
            vms=self._vms.reports(),
            silent=[VmId(vm) for vm in self._vms.silent()],
            leases=self._store.unconfirmed(),
            pools={PoolId(pool): status for pool, status in (await self._pools.statuses()).items()},
            bridges=await self._bridges(),
        )
        answer = await self._bus.request(Subjects.host_report(self._name), encode(report), timeout=CONTROLLER_PATIENCE)
        receipt = parse(ReportReceipt, answer, "the answer to a report")
        self._store.confirm(receipt.confirmed)
        return not receipt.introduce

    async def _bridges(self) -> list[str] | None:
        try:
            return await self._network.list_bridges()
        except SeraiError as error:
            log.warning("which bridges there are cannot be told: %s", error)
            return None

    # --- commands ---

    async def _on_command(self, message: Message) -> bytes | None:
        try:
            request = Request.model_validate_json(message.payload)
        except ValidationError as error:
            raise invalid(error, "not a request") from error
        if request.to not in (None, self._identity.incarnation):
            log.info("%s on %s is for another agent of this name: %s", request.command, request.key, request.to)
            return None
        if request.position is not None:
            self._store.note_seen(request.position)
        return encode(await self.command(request))

    async def _on_vm_command(self, message: Message) -> bytes | None:
        """Carried out only while this host holds the VM's lease, whatever the controller knows of it."""
        vm = Subjects.vm_of(message.subject)
        await self._vms.adopted(vm)
        if not self._holds(vm):
            # Not for good: a VM that has just left, or whose QEMU does not answer yet. The asker knows when to give up.
            raise UnavailableError(f"{self._name} does not hold the lease of VM {vm}", field="vm", value=vm)
        return await self._on_command(message)

    async def command(self, request: Request) -> Reply:
        """Carry out, join or repeat; see the module's text."""
        reply = self._store.answer(request.id)
        if reply is None:
            task = self._running.get(request.id)
            if task is None:
                task = self._tasks.start(self._carry_out(request), f"command-{request.id}")
                self._running[request.id] = task
            done, _ = await asyncio.wait({task}, timeout=HOLD)
            if not done:
                return Reply(state="running")
            reply = task.result()
        await self._store.durable()  # a reply that was sent must not be forgotten after a power cut
        return reply

    async def _carry_out(self, request: Request) -> Reply:
        began = self._clock.monotonic()
        what = f"{request.command} on {request.key} (job {request.job})"
        try:
            reply = Reply(state="done", result=await self._execute(request))
            log.info("%s took %.0f ms", what, (self._clock.monotonic() - began) * 1000)
        except SeraiError as error:
            log.info("%s failed: %s", what, error)
            reply = Reply(state="failed", error=error.info)
        except Exception as error:
            # A fault of ours must reach the job that asked, with the trace here.
            log.exception("%s failed", what)
            reply = Reply(state="failed", error=ErrorInfo(code="internal", message=f"{type(error).__name__}: {error}"))
        finally:
            self._running.pop(request.id, None)
        if reply.error is None or reply.error.code != "unavailable":
            # "Unavailable" may be over by the next try; every other answer is final.
            self._store.put_answer(request.id, reply)
        return reply

    async def _execute(self, request: Request) -> dict[str, Any] | None:
        noun, _, of = request.key.partition("/")
        if noun == "vm":
            await self._vms.adopted(of)
        newest = self._store.generation(request.key)
        if request.generation and request.generation < newest:
            raise StaleError(
                f"{request.key} is at generation {newest} here already", field="generation", value=request.generation
            )

        def progress(phase: str, fraction: float | None, waits_for: str = "") -> None:
            said = CommandProgress(request=request.id, phase=phase, fraction=fraction, waits_for=waits_for)
            self._tasks.start(self._publish_progress(said))

        result = await self._executor.run(request, progress)
        if request.generation > newest:
            self._store.put_generation(request.key, request.generation)
        return result

    async def _publish_progress(self, progress: CommandProgress) -> None:
        try:
            await self._bus.publish(Subjects.progress(self._name, progress.request), encode(progress))
        except UnavailableError as error:
            log.debug("progress of %s is lost: %s", progress.request, error)

    async def _on_verdict(self, message: Message) -> bytes | None:
        if self._refused:
            log.info("a question for a verdict is left to the agent that the controller knows")
            return None
        ask = VerdictAsk.model_validate_json(message.payload)
        if not await self._vms.adopted(ask.vm, timeout=VERDICT_HOLD):
            # The journal alone would do to turn it down; but its state may be here.
            return encode(Verdict(claim=Claim.OFFERED))
        source = Subjects.asker_of(message.subject)
        return encode(await self._moves.verdict(ask, source, hold=VERDICT_HOLD))
