"""Host agents on one in-process bus, with machines in memory: all real but the hypervisor, the network and the pools.

A `Host` can be killed at any journal line, as by kill -9: nothing that its agent would still do has an effect, its
QEMUs go on, and a new agent starts from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from serai.drivers.hypervisor.base import HostResources, RunState
from serai.drivers.hypervisor.fake import FakeMachine, FakeProcess, FakeWorld
from serai.drivers.hypervisor.fake_hypervisor import FakeHypervisor
from serai.drivers.image import importer
from serai.drivers.image.seed import write_seed
from serai.drivers.image.store import ImageStore
from serai.drivers.network.base import Tap
from serai.drivers.network.fake import FakeNetwork
from serai.drivers.network.uplink import UplinkTaker
from serai.drivers.storage.fake import FakePool
from serai.host.agent import HostAgent, VmReports
from serai.host.executor import Executor
from serai.host.identity import HostIdentity
from serai.host.journal import Journal
from serai.host.migration.manager import MigrationManager
from serai.host.network.ports import VnicPorts
from serai.host.storage.images import HostImages
from serai.host.storage.pools import HostPools
from serai.host.storage.volumes import HostVolumes
from serai.host.store import HostStore
from serai.host.vm.resources import VmResources
from serai.host.vm.runner import VmServices
from serai.host.vm.supervisor import Supervisor
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.lib.membus import MemBus
from serai.lib.paths import HostPaths
from serai.lib.tasks import Tasks
from serai.schema.commands.base import AnyCommand, BodyT, Command, ReplyT
from serai.schema.commands.envelope import CommandProgress, Reply, Request
from serai.schema.commands.migration import Verdict, VerdictAsk
from serai.schema.commands.vm import VM_START, StartVm
from serai.schema.encoding import encode, to_dict
from serai.schema.errors import UnavailableError, from_info
from serai.schema.host import HostFacts
from serai.schema.ids import HostId, HostName, VmId, VolumeId
from serai.schema.launch import Disk, IscsiDisk, Launch, VnicAttachment
from serai.schema.reports import ConfirmedClaim, HostReport, Introduction, ReportReceipt, Welcome
from serai.schema.subjects import Subjects
from serai.schema.vm import RestartPolicy, VmReport, VmState

VM = VmId("0123456789ab")
OTHER = VmId("ba9876543210")
FACTS = HostFacts(
    cpus=2,
    memory=4 << 30,
    accel="tcg",
    qemu_version="10.0.0",
    machine_types=["pc-q35-10.0"],
    migration_capabilities=[],
    cpu_model="fake",
    addresses={},
    abilities=[],
    agent_version="1",
)


def make_launch(*, epoch: int = 1, vm: VmId = VM, **changes: Any) -> Launch:
    """A VM with one exported disk and one VNIC."""
    source = IscsiDisk(
        volume=VolumeId("d" * 12),
        portal="10.78.0.11:3260",
        target="iqn.2026-01.io.serai:v",
        lun=1,
        initiator=f"iqn.2026-01.io.serai:vm.{vm}.{epoch}",
        user=f"vm-{vm}-{epoch}",
        password=SecretStr(f"secret-of-{epoch}"),
    )
    values: dict[str, Any] = {
        "vm": vm,
        "name": "web1",
        "generation": 1,
        "machine": "pc-q35-10.0",
        "accel": "tcg",
        "cpus": 1,
        "max_cpus": 4,
        "memory": 64 << 20,
        "uuid": "00000000-0000-0000-0000-000000000001",
        "disks": [Disk(index=0, name="web1-0", size=1 << 30, source=source, serial="d" * 12)],
        "vnics": [VnicAttachment(index=0, mac="52:54:00:00:00:01", bridge="br-lan", tap=f"sv{vm[:10]}-0")],
    }
    return Launch(**{**values, **changes})


def vm_start(**changes: Any) -> StartVm:
    """Starts that VM under its first epoch."""
    return StartVm.model_validate({"launch": make_launch(), "epoch": 1, "restart": RestartPolicy.NEVER, **changes})


class HeldNetwork(FakeNetwork):
    """QEMU holds its taps: they stay when we close ours, and a leftover is replaced."""

    async def create_tap(self, vnic: VnicAttachment, *, open_port: bool) -> Tap:
        self.ports.pop(vnic.tap, None)
        await super().create_tap(vnic, open_port=open_port)
        return Tap(vnic.tap, -1)


class CrashingJournal(Journal):
    """Calls `on_write` after each record. Its batches are synced at once, and no thread decides when a test goes on."""

    on_write: Callable[[], None] | None = None
    disk: asyncio.Event
    """Set while the disk takes batches."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.disk = asyncio.Event()
        self.disk.set()

    @property
    def synced(self) -> int:
        """Bytes that a power cut leaves."""
        return self._synced

    def append(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        super().append(kind, key, data)
        self._written()

    def commit(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        super().commit(kind, key, data)
        self._written()

    def _written(self) -> None:
        if self.on_write is not None:
            self.on_write()

    async def _in_thread(self, function: Callable[[], None]) -> None:
        await self.disk.wait()
        function()


class Host:
    """One host: its machines and its state folder outlive its agents."""

    journal: CrashingJournal
    store: HostStore
    tasks: Tasks
    agent: HostAgent
    executor: Executor
    vms: Supervisor
    moves: MigrationManager

    def __init__(self, name: str, folder: Path, bus: MemBus, world: FakeWorld, clock: ManualClock) -> None:
        self.name = name
        self.bus = bus
        self.world = world
        self.clock = clock
        self.paths = HostPaths(state=folder / name / "state", run=folder / name / "run")
        self.paths.qemu_pki.mkdir(parents=True)
        self.hypervisor = FakeHypervisor(world)
        self.network = HeldNetwork()
        self.pools: dict[str, FakePool] = {}
        self.cut = False
        """Its questions to other hosts are not answered."""
        self.up = False
        self.boots = 1
        self._ending: asyncio.Task[None] | None = None

    async def start(self, *, rebooted: bool = False, wait: bool = True) -> None:
        """A new agent, from the journal; with `wait`, until it has taken over what it found."""
        self.journal = CrashingJournal.open(self.paths.journal)
        self.store = HostStore(self.journal)
        self.tasks = Tasks(self.name)
        self.tasks.start(self.journal.run(), "journal")
        images = ImageStore(self.paths.images)
        pools = HostPools(
            store=self.store,
            paths=self.paths,
            exporter=None,
            open_driver=lambda pool: self.pools.setdefault(pool.pool, FakePool()),
        )
        volumes = HostVolumes(pools, portal="10.78.0.11:3260", image_disk=images.checked_disk)
        ports = VnicPorts(self.name, self.network)
        identity = HostIdentity(HostName(self.name), self.store, FACTS)
        services = VmServices(
            identity=identity,
            clock=self.clock,
            tasks=self.tasks,
            store=self.store,
            hypervisor=self.hypervisor,
            ports=ports,
            resources=VmResources(
                paths=self.paths,
                ports=ports,
                disk_path=pools.disk_path,
                image_file=images.checked_file,
                write_seed=write_seed,
                qemu_user=None,
            ),
            report=VmReports(self.name, self.bus, self.tasks).publish,
        )
        self.vms = Supervisor(services)
        self.moves = MigrationManager(
            services, self.vms, self._ask_verdict, address=self.name, tls_hostname=f"qemu.{self.name}"
        )
        host_images = HostImages(store=images, builders={}, importer=importer, tls=None)
        self.executor = Executor(
            identity, self.vms, self.moves, pools, volumes, host_images, UplinkTaker(self.paths.state)
        )
        self.agent = HostAgent(
            identity=identity,
            bus=self.bus,
            clock=self.clock,
            tasks=self.tasks,
            store=self.store,
            vms=self.vms,
            moves=self.moves,
            pools=pools,
            network=self.network,
            executor=self.executor,
        )
        self.up = True
        self.boots += rebooted
        self.vms.take_over(self.moves.take_up, boot=f"boot {self.boots}")
        await self.agent.join()
        if wait:
            await self.vms.taken_over()

    async def _ask_verdict(self, host: str, ask: VerdictAsk) -> Verdict:
        if self.cut:
            raise UnavailableError("the bus is away")
        return Verdict.model_validate_json(
            await self.bus.request(Subjects.verdict(host, self.name), encode(ask), timeout=0.5)
        )

    # --- faults ---

    def freeze(self) -> None:
        """The agent is dead from here on: whatever it would still do happens to nothing."""
        if not self.up:
            return
        self.up = False
        self.journal.on_write = None
        self.journal.close()
        for process in self.processes():
            if process.machine is not None:
                process.machine.process = FakeProcess(self.world, process.launch, process.resources, incoming=False)
                process.machine = None
        for subscription in self.agent._subscriptions:
            self.bus.forget(subscription)  # type: ignore[arg-type] # MemBus gave them out
        self._ending = asyncio.get_running_loop().create_task(self.tasks.close())

    async def kill(self) -> None:
        """kill -9 of the agent."""
        self.freeze()
        if self._ending is not None:
            await self._ending
            self._ending = None

    async def restart(self, *, rebooted: bool = False) -> None:
        """kill -9 of the agent, and a new one."""
        await self.kill()
        await self.start(rebooted=rebooted)

    def lose_power(self) -> None:
        """The machine is off: its QEMUs are gone, and what its journal had not synced."""
        synced = self.journal.synced
        self.freeze()
        os.truncate(self.paths.journal, synced)
        for process in self.processes():
            process.end(by_signal=9)

    def hold_start(self) -> asyncio.Event:
        """From now on a QEMU that was started is handed to its agent only once the event is set."""
        answers, start = asyncio.Event(), self.hypervisor.start

        async def later(launch: Launch, resources: HostResources, *, incoming: bool, paused: bool) -> FakeMachine:
            machine = await start(launch, resources, incoming=incoming, paused=paused)
            await answers.wait()
            return machine

        self.hypervisor.start = later  # type: ignore[method-assign] # a QEMU that takes its time
        return answers

    def hold_adoption(self, vm: str) -> asyncio.Event:
        """From now on the VM's QEMU is adopted only once the event is set, as if it was stopped until then."""
        answers, adopt = asyncio.Event(), self.hypervisor.adopt

        async def later(found: str, run_dir: Path) -> FakeMachine | None:
            if found == vm:
                await answers.wait()
            return await adopt(found, run_dir)

        self.hypervisor.adopt = later  # type: ignore[assignment,method-assign] # a QEMU that is stopped
        return answers

    async def power_cycle(self) -> None:
        """The machine itself restarts: its QEMUs are gone."""
        await self.kill()
        for process in self.processes():
            process.end(by_signal=9)
        await self.start(rebooted=True)

    def die_after(self, writes: int, *, power: bool = False) -> None:
        """Kill the agent right after that many more journal lines, or with `power` cut the power of the machine."""
        left = writes

        def count() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                if power:
                    self.lose_power()
                self.freeze()
                raise asyncio.CancelledError

        self.journal.on_write = count

    # --- what is here ---

    def processes(self) -> list[FakeProcess]:
        """This host's live QEMUs."""
        run = self.paths.run
        return [found for folder, found in self.world.processes.items() if found.alive and folder.is_relative_to(run)]

    def process(self, vm: VmId = VM) -> FakeProcess:
        """The live QEMU of a VM."""
        found = self.world.processes[self.paths.vm_run(vm)]
        assert found.alive
        return found

    @property
    def running(self) -> list[FakeProcess]:
        return [process for process in self.processes() if process.state is RunState.RUNNING]

    def state(self, vm: VmId = VM) -> VmState | None:
        record = self.store.vm(vm)
        return None if record is None else record.state

    def reason(self, vm: VmId = VM) -> str:
        record = self.store.vm(vm)
        return "" if record is None else record.reason


class Ground:
    """Hosts on one bus and in one world, a clock that tests turn, and a controller's voice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bus = MemBus()
        self.world = FakeWorld()
        self.clock = ManualClock()
        self.hosts: dict[str, Host] = {}
        self.most = 0
        """The most copies of one VM that ever ran at once."""
        self.reports: list[VmReport] = []
        self.host_reports: list[HostReport] = []
        self.hellos: list[Introduction] = []
        self.welcome: Callable[[Introduction], Welcome | None] = lambda _: self.welcomed()
        """The controller's answer to a hello; none: it is away."""
        self.disbelieves = False
        """The controller takes no report before another hello."""
        self.waits: list[str] = []
        """What hosts said that their commands wait for."""
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.bus.subscribe(Subjects.vm_report("*", "*"), self._on_report)
        await self.bus.subscribe("host.*.report", self._on_host_report)
        await self.bus.subscribe(Subjects.hello("*"), self._on_hello)
        await self.bus.subscribe(Subjects.progress("*", "*"), self._on_progress)
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        for host in self.hosts.values():
            await host.kill()
        await self.world.close()
        await self.bus.close()

    async def _on_report(self, message: Any) -> None:
        self.reports.append(VmReport.model_validate_json(message.payload))

    async def _on_host_report(self, message: Any) -> bytes:
        report = HostReport.model_validate_json(message.payload)
        self.host_reports.append(report)
        if self.disbelieves:
            return encode(ReportReceipt(introduce=True))
        confirmed = [ConfirmedClaim(vm=row.vm, epoch=row.epoch, claim=row.claim) for row in report.leases]
        return encode(ReportReceipt(confirmed=confirmed))

    async def _on_progress(self, message: Any) -> None:
        said = CommandProgress.model_validate_json(message.payload).waits_for
        if said:
            self.waits.append(said)

    async def _on_hello(self, message: Any) -> bytes | None:
        said = Introduction.model_validate_json(message.payload)
        self.hellos.append(said)
        welcome = self.welcome(said)
        return None if welcome is None else encode(welcome)

    def welcomed(self, **changes: Any) -> Welcome:
        """The answer to a hello."""
        return Welcome(host_id=HostId("a" * 12), time=self.clock.now(), **changes)

    async def _watch(self) -> None:
        while True:
            counts: dict[str, int] = {}
            for host in self.hosts.values():
                for process in host.running:
                    counts[process.launch.vm] = counts.get(process.launch.vm, 0) + 1
            self.most = max([self.most, *counts.values()])
            await asyncio.sleep(0)

    async def host(self, name: str) -> Host:
        """A new host with its agent."""
        self.hosts[name] = Host(name, self.folder, self.bus, self.world, self.clock)
        await self.hosts[name].start()
        return self.hosts[name]

    async def until(self, condition: Callable[[], Any], *, ticking: bool = True) -> None:
        """Wait for a condition; the clock runs meanwhile unless told not to."""
        async with asyncio.timeout(20):
            while not condition():
                if ticking:
                    self.clock.advance(0.1)
                await self.turn(10)

    async def turn(self, times: int = 200) -> None:
        """Let happen what needs no time."""
        for _ in range(times):
            await asyncio.sleep(0)

    async def send(
        self, host: str, command: AnyCommand | str, body: BaseModel | dict[str, Any], **changes: Any
    ) -> Reply:
        """One command, once."""
        content = body if isinstance(body, dict) else to_dict(body)
        key = f"vm/{VM}" if isinstance(body, dict) or isinstance(command, str) else command.key(body)
        request = Request(**{"id": new_id(), "command": str(command), "key": key, "body": content, **changes})
        return Reply.model_validate_json(await self.bus.request(Subjects.host_command(host), encode(request), 15.0))

    async def ask(self, host: str, command: Command[BodyT, ReplyT], body: BodyT, **changes: Any) -> ReplyT:
        """One command until it is answered, as the controller does; raises what it failed with."""
        changes.setdefault("id", new_id())
        async with asyncio.timeout(20):
            while True:
                try:
                    reply = await self.send(host, command, body, **changes)
                except UnavailableError:
                    reply = Reply(state="running")
                if reply.state == "done":
                    return command.read_reply(reply.result)
                if reply.error is not None and reply.error.code != "unavailable":
                    raise from_info(reply.error)
                await self.turn(20)
                self.clock.advance(0.1)

    async def run_vm(
        self, host: str, *, epoch: int = 1, restart: RestartPolicy = RestartPolicy.NEVER, **changes: Any
    ) -> VmReport:
        """Start the VM there."""
        launch = changes.pop("launch", None) or make_launch(epoch=epoch)
        body = StartVm(launch=launch, epoch=epoch, restart=restart, **changes)
        return await self.ask(host, VM_START, body)

    async def run_two(self) -> None:
        """VM and OTHER, on h1."""
        await self.run_vm("h1")
        await self.run_vm("h1", launch=make_launch(vm=OTHER, name="web2"))
