"""The real workflows behind the real API, against agents that answer by the book."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from serai.app.controller import Controller, ControllerConfig, running, standard_extras
from serai.client.context import Context
from serai.client.http import Client
from serai.controller.workflows import migrate
from serai.lib.bus import Message
from serai.lib.clock import SystemClock
from serai.lib.membus import MemBus
from serai.schema.commands import BY_NAME
from serai.schema.commands.base import AnyCommand
from serai.schema.commands.envelope import Reply, Request
from serai.schema.commands.host import HOST_INTRODUCE
from serai.schema.commands.image import IMAGE_CREATE
from serai.schema.commands.migration import (
    MIGRATION_ABANDON,
    MIGRATION_CANCEL,
    MIGRATION_PREPARE,
    MIGRATION_START,
    MIGRATION_WITHDRAW,
    CancelResult,
    MigrationEndpoint,
    MigrationOutcome,
    Verdict,
    Withdrawal,
)
from serai.schema.commands.pool import POOL_OPEN
from serai.schema.commands.vm import VM_CONFIGURE, VM_PAUSE, VM_RELEASE, VM_RESUME, VM_START, VM_STOP, ConfigureResult
from serai.schema.commands.volume import VOLUME_ADMIT, VolumeExport
from serai.schema.encoding import encode, to_dict
from serai.schema.errors import HostError, StaleError, UnavailableError
from serai.schema.host import Ability, HostFacts, HostState
from serai.schema.ids import HostName, VmId
from serai.schema.image import ImageKind, ImageManifest
from serai.schema.job import Job, JobState
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.reports import HostReport, Incarnation, Introduction, StorePosition, Welcome
from serai.schema.subjects import Subjects
from serai.schema.vm import Vm, VmReport, VmState
from serai.schema.volume import PoolStatus

FACTS = HostFacts(
    cpus=4,
    memory=8 << 30,
    accel="tcg",
    qemu_version="10.0",
    machine_types=["pc-q35-10.0"],
    migration_capabilities=["events", "pause-before-switchover", "late-block-activate"],
    suppress_vmdesc=True,
    addresses={"management": "10.0.0.1", "storage": "10.0.0.1", "migration": "10.0.0.1"},
    abilities=[Ability(name="kvm", found=False, detail="there is no /dev/kvm")],
)
INCARNATION = Incarnation(journal="1" * 12, starts=1)
PLAIN: dict[AnyCommand, Any] = {
    POOL_OPEN: PoolStatus(state="ready", path="/p", total=100 << 30, free=90 << 30),
    VOLUME_ADMIT: VolumeExport(portal="10.0.0.1:3260", target="t", lun=1),
    MIGRATION_PREPARE: MigrationEndpoint(
        address="10.0.0.2", port=49152, tls_hostname="qemu.h2", journal=INCARNATION.journal
    ),
    MIGRATION_START: MigrationOutcome(committed=True, total_s=1.0),
    MIGRATION_ABANDON: Verdict(claim=Claim.ABANDONED),
    MIGRATION_WITHDRAW: Withdrawal(never_sent=True),
    MIGRATION_CANCEL: CancelResult(too_late=False),
    VM_CONFIGURE: ConfigureResult(applied=["all"], pending=[]),
    IMAGE_CREATE: ImageManifest(name="tiny", kind=ImageKind.KERNEL, files=[], cloud_init=True),
}


SIGNALS: dict[AnyCommand, VmState] = {
    VM_STOP: VmState.STOPPED,
    VM_PAUSE: VmState.PAUSED,
    VM_RESUME: VmState.RUNNING,
}
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def _done(result: BaseModel | None) -> bytes:
    return encode(Reply(state="done", result=None if result is None else to_dict(result)))


class Held:
    """A command that an agent has got (`asked`) and answers once the test says what."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[BaseModel | None] = asyncio.get_running_loop().create_future()


class Agents:
    """Every host's agent. `failing` and `failing_once` hold the commands that are answered with an error.

    A VM's next report bears the number `sequence`.
    """

    def __init__(self, bus: MemBus) -> None:
        self.bus = bus
        self.failing: set[AnyCommand] = set()
        self.failing_once: set[AnyCommand] = set()
        self.silent: set[str] = set()
        """Hosts that do not answer."""
        self.answers = dict(PLAIN)
        self._held: dict[AnyCommand, Held] = {}
        self.asked: list[tuple[str, AnyCommand]] = []
        self.sequence = 1
        self._epochs: dict[str, int] = {}
        self._released: set[tuple[str, str, int]] = set()
        self._joined: set[str] = set()
        self.incarnations: dict[str, Incarnation] = {}
        """Of those hosts that have another one than `INCARNATION`."""
        self.journals: dict[str, dict[tuple[str, int], LeaseRecord]] = {}
        self.seen: dict[str, StorePosition] = {}
        self.strays: dict[str, list[VmId]] = {}

    async def keep_reporting(self) -> None:
        """However long a test takes: hosts that are not silent are not taken for offline.

        These reports are too old to say anything of a VM that is not in them.
        """
        while True:
            for host in self._joined - self.silent:
                report = HostReport(host=HostName(host), incarnation=INCARNATION, time=LONG_AGO)
                with contextlib.suppress(UnavailableError):
                    await self.bus.publish(Subjects.host_report(host), encode(report))
            await asyncio.sleep(1)

    async def join(self, host: str) -> None:
        async def answer(message: Message) -> bytes:
            return await self._answer(host, Request.model_validate_json(message.payload))

        await self.bus.subscribe(Subjects.host_command(host), answer)
        await self.bus.subscribe(Subjects.vm_command(host, "*"), answer)
        await self.hello(host)
        self._joined.add(host)

    async def hello(self, host: str) -> Welcome:
        words = encode(self.introduction(host))
        return Welcome.model_validate_json(await self.bus.request(Subjects.hello(host), words, timeout=5))

    def introduction(self, host: str) -> Introduction:
        """What its journal holds."""
        return Introduction(
            host=HostName(host),
            incarnation=self.incarnations.get(host, INCARNATION),
            facts=FACTS,
            seen=self.seen.get(host),
            leases=list(self.journals.get(host, {}).values()),
            strays=self.strays.get(host, []),
        )

    def claims(self, host: str, vm: str, epoch: int, claim: Claim, offer_id: str | None = None) -> None:
        """A line in a host's journal."""
        record = LeaseRecord(vm=VmId(vm), epoch=epoch, claim=claim, offer_id=offer_id)
        self.journals.setdefault(host, {})[vm, epoch] = record

    def hold(self, command: AnyCommand) -> Held:
        """Keep these commands waiting."""
        return self._held.setdefault(command, Held())

    def release(self, command: AnyCommand, answer: BaseModel | None) -> None:
        """Answer those that wait so, and no longer hold the others."""
        self._held.pop(command).answer.set_result(answer)

    async def _answer(self, host: str, request: Request) -> bytes:
        command, body = BY_NAME[request.command], request.body
        if host in self.silent:
            raise UnavailableError(f"{host} is silent")
        if command is HOST_INTRODUCE:
            return _done(self.introduction(host))
        if request.to not in (None, self.incarnations.get(host, INCARNATION)):
            raise UnavailableError(f"{request.to} is another agent of {host}")
        if request.position is not None:
            self.seen[host] = request.position
        self.asked.append((host, command))
        if command in self.failing | self.failing_once:
            self.failing_once.discard(command)
            return encode(Reply(state="failed", error=HostError(f"{command} failed").info))
        if command in self._held:
            self._held[command].asked.set()
            return _done(await self._held[command].answer)
        self._journal(host, command, body)
        if command is VM_START and (host, body["launch"]["vm"], body["epoch"]) in self._released:
            return encode(Reply(state="failed", error=StaleError("the epoch is over here", field="epoch").info))
        return _done(self.answers.get(command) or self._of_vm(host, command, body))

    def _journal(self, host: str, command: AnyCommand, body: dict[str, Any]) -> None:
        """What the answer to a command makes of its claims."""
        if command is VM_RELEASE:
            self._released.add((host, body["vm"], body["epoch"]))
            for vm, epoch in list(self.journals.get(host, {})):
                if vm == body["vm"] and epoch <= body["epoch"]:
                    self.claims(host, vm, epoch, Claim.RELEASED)
        elif command is VM_START:
            self.claims(host, body["launch"]["vm"], body["epoch"], Claim.HELD)
        elif command is MIGRATION_PREPARE:
            self.claims(host, body["launch"]["vm"], body["epoch"], Claim.OFFERED, body["offer_id"])
        elif command is MIGRATION_START and self.answers[command].committed:
            self.claims(body["destination"], body["vm"], body["epoch"], Claim.COMMITTED, body["offer_id"])
        elif command is MIGRATION_ABANDON:
            self.claims(host, body["vm"], body["epoch"], self.answers[command].claim, body["offer_id"])

    def _of_vm(self, host: str, command: AnyCommand, body: dict[str, Any]) -> VmReport | None:
        if command is VM_START:
            vm, state = body["launch"]["vm"], VmState.RUNNING
            self._epochs[vm] = body["epoch"]
        elif command in SIGNALS:
            vm, state = body["vm"], SIGNALS[command]
        else:
            return None
        now = SystemClock().now()
        self.sequence += 1
        return VmReport(
            vm=vm,
            host=HostName(host),
            epoch=self._epochs[vm],
            state=state,
            reason="as asked" if state is VmState.STOPPED else "",
            since=now,
            sequence=self.sequence - 1,
        )


class World:
    """A controller, which may be restarted, with agents that outlive it."""

    controller: Controller
    client: Client

    def __init__(self, config: ControllerConfig, agents: Agents) -> None:
        self.config = config
        self.agents = agents
        self._stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        extras = standard_extras(None)
        self.controller = await self._stack.enter_async_context(running(self.config, self.agents.bus, extras))
        context = Context(socket=self.config.socket, token_file=self.config.token_file)
        self.client = await self._stack.enter_async_context(Client(context))

    async def close(self) -> None:
        await self._stack.aclose()

    async def restart(self) -> None:
        """Jobs stay where they are, as after a crash, and are picked up."""
        await self.close()
        await self.open()

    async def until(self, job: Job, condition: Callable[[Job], bool]) -> Job:
        """The job, once it is so."""
        async with asyncio.timeout(20):
            while not condition(job):
                await asyncio.sleep(0.02)
                job = await self.client.call("job.show", job.id)
        return job

    async def do(self, name: str, target: str | None = None, body: Any = None, *, query: Any = None) -> Job:
        job = await self.client.call(name, target, body, query)
        return await asyncio.wait_for(self.client.wait_job(job.id), 20)

    async def moving(self, vm: str) -> None:
        """What the source reports once the move has begun."""
        found = await self.vm(vm)
        assert found.status.host is not None
        self.agents.sequence += 1
        report = VmReport(
            vm=found.id,
            host=found.status.host,
            epoch=found.status.epoch,
            state=VmState.MIGRATING,
            since=SystemClock().now(),
            sequence=self.agents.sequence - 1,
        )
        await self.agents.bus.request(Subjects.vm_report(report.host, report.vm), encode(report), timeout=5)

    async def offline(self, host: str) -> None:
        """A host is silent, and the controller has noticed it."""
        self.agents.silent.add(host)
        async with self.controller.store.transaction() as tx:
            await tx.hosts.update_status((await tx.hosts.find(host)).id, state=HostState.OFFLINE)

    async def vm(self, name: str) -> Vm:
        found: Vm = await self.client.call("vm.show", name)
        return found

    async def owners(self) -> dict[str, str | None]:
        return {volume.name: volume.status.vm for volume in (await self.client.call("volume.list")).items}

    async def create(self, name: str = "web1", **spec: Any) -> Job:
        disk = {"pool": "p", "size": "1G"}
        given = {"image": "tiny", "memory": "1G", "disks": [disk], "vnics": [{"network": "lan"}], **spec}
        return await self.do("vm.create", None, {"name": name, "spec": given})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves ask again soon."""
    for name in ("REPEAT", "PATIENCE", "GRACE"):
        monkeypatch.setattr(migrate, name, 0.2)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    config = ControllerConfig(
        state=tmp_path / "state", listen=None, socket=tmp_path / "api.sock", token_file=tmp_path / "token"
    )
    bus = MemBus()
    made = World(config, Agents(bus))
    reporting = asyncio.create_task(made.agents.keep_reporting())
    try:
        await made.open()
        for host in ("h1", "h2"):
            await made.agents.join(host)
        assert (await made.do("pool.create", None, {"name": "p", "spec": {"host": "h1"}})).state is JobState.DONE
        image = {"name": "tiny", "spec": {"source": "build", "recipe": "tiny"}}
        assert (await made.do("image.create", None, image)).state is JobState.DONE
        network = {"name": "lan", "spec": {"bridge": "br-lan", "subnet": "10.77.0.0/24"}}
        await made.client.call("network.create", None, network)
        yield made
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        await made.close()
        await bus.close()
