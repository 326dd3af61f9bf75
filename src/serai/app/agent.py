"""The host agent's process: `python -m serai.app.agent --config FILE`.

`HostParts` wires drivers, journal and agent together; `serai up` uses it too, in one process with the controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import grp
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import psutil

from serai.drivers.hypervisor.base import Hypervisor
from serai.drivers.image.seed import write_seed
from serai.drivers.image.store import ImageStore
from serai.drivers.network.base import NetworkDriver
from serai.drivers.network.links import BridgeNetwork
from serai.drivers.network.uplink import UplinkTaker
from serai.host import certificates, registry
from serai.host.agent import HostAgent, VmReports
from serai.host.certificates import HostCertificates
from serai.host.executor import Executor
from serai.host.identity import HostIdentity
from serai.host.journal import Journal
from serai.host.migration.manager import MigrationManager
from serai.host.network.ports import VnicPorts
from serai.host.storage.images import HostImages
from serai.host.storage.pools import HostPools
from serai.host.storage.volumes import HostVolumes
from serai.host.store import HostStore
from serai.host.vm.consoles import Consoles
from serai.host.vm.resources import VmResources
from serai.host.vm.runner import VmServices
from serai.host.vm.supervisor import Supervisor, machine_boot_id
from serai.lib import service
from serai.lib.alone import alone
from serai.lib.bus import Bus
from serai.lib.clock import SystemClock
from serai.lib.natsbus import NatsBus
from serai.lib.paths import HostPaths
from serai.lib.pki import TlsFiles, qemu_folder, qemu_identity, write_qemu_folder
from serai.lib.qemuimg import QEMU_USER
from serai.lib.reconcile import Reconciler
from serai.lib.stream import StreamServer
from serai.lib.tasks import Tasks, unless_over
from serai.schema.commands.migration import Verdict, VerdictAsk
from serai.schema.encoding import encode
from serai.schema.errors import UnavailableError
from serai.schema.host import Ability, HostFacts, HypervisorFacts
from serai.schema.ids import HostName
from serai.schema.resource import Frozen
from serai.schema.subjects import Subjects
from serai.schema.ticket import STREAM_PORT, Purpose, RedeemTicket, Ticket

log = logging.getLogger(__name__)

VERDICT_TIMEOUT = 3.0
"""Seconds for one question to the destination's journal; longer than `VERDICT_HOLD`, for which it holds it open."""
CHECK_PERIOD = 5.0
TIDY_PERIOD = 300.0
ASK_AGAIN = 5.0
"""Seconds until a QEMU that did not answer in time is asked again what it can do."""


class AgentConfig(Frozen):
    """`addresses`: `management`, `storage` (iSCSI), `migration`. `pki` holds ca.pem and identity.pem, and
    in a folder `migration` the same for the host's QEMUs, see lib/pki.py.

    `allow_unsandboxed`: on a machine whose QEMU has no sandbox VMs run without one; off, none is started there.
    """

    name: HostName
    bus_url: str = ""
    pki: Path
    addresses: dict[str, str]
    state: Path = Path("/var/lib/serai")
    run: Path = Path("/run/serai")
    image_cache: Path = Path("/var/cache/serai/images")
    allow_unsandboxed: bool = False


class HostParts:
    """One host's parts, wired. `run` works until cancelled; VMs and targets outlive it."""

    def __init__(self, config: AgentConfig, bus: Bus) -> None:
        self._config = config
        self._bus = bus
        self._clock = SystemClock()
        self.paths = HostPaths(state=config.state, run=config.run)
        self._tasks = Tasks(f"agent-{config.name}")
        self._certificates = HostCertificates(config.name, config.pki, bus, self._clock)

    async def run(self, ready: asyncio.Event) -> None:
        """Start all, say so by `ready`, and work."""
        config, paths = self._config, self.paths
        tls = TlsFiles.in_folder(config.pki)
        self._make_folders()
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(alone(paths.state / "agent.lock", "host agent"))
            journal = Journal.open(paths.journal)
            stack.callback(journal.close)
            stack.push_async_callback(self._tasks.close)
            self._tasks.start(journal.run(), "journal")
            store = HostStore(journal)
            hypervisor = registry.hypervisor(paths, allow_unsandboxed=config.allow_unsandboxed)
            network = BridgeNetwork()
            await network.start()
            stack.push_async_callback(network.close)
            image_store = ImageStore(paths.images)
            image_store.open()
            images = self._images(tls, image_store)
            pools = self._pools(store)
            await pools.start()
            facts = await self._find_out(hypervisor)
            identity = HostIdentity(config.name, store, self._facts(facts))
            services = self._services(identity, store, hypervisor, network, pools, image_store)
            taker = UplinkTaker(paths.state)
            await taker.start()
            vms = Supervisor(services)
            moves = self._moves(services, vms)
            portal = f"{config.addresses['storage']}:3260"
            volumes = HostVolumes(pools, portal=portal, image_disk=image_store.checked_disk)
            agent = HostAgent(
                identity=identity,
                bus=self._bus,
                clock=self._clock,
                tasks=self._tasks,
                store=store,
                vms=vms,
                moves=moves,
                pools=pools,
                network=network,
                executor=Executor(identity, vms, moves, pools, volumes, images, taker),
            )
            vms.take_over(moves.take_up, boot=machine_boot_id())
            await agent.join()
            stack.push_async_callback(agent.leave)
            streams = await stack.enter_async_context(self._streams(tls, images))
            # Before VMs are waited for: a target that died since is what they may be waiting for.
            self._repeat("storage-check", pools.check, CHECK_PERIOD)
            await vms.taken_over()
            self._repeat("journal-tidy", functools.partial(_tidy, journal, vms), TIDY_PERIOD)
            ready.set()
            self._tasks.start(self._look_again(hypervisor, agent), "look-again")
            keep = functools.partial(self._keep_certificates, streams, agent, hypervisor)
            self._repeat("certificates", keep, certificates.PERIOD)
            await asyncio.Event().wait()

    def _services(
        self,
        identity: HostIdentity,
        store: HostStore,
        hypervisor: Hypervisor,
        network: NetworkDriver,
        pools: HostPools,
        images: ImageStore,
    ) -> VmServices:
        ports = VnicPorts(self._config.name, network)
        resources = VmResources(
            paths=self.paths,
            ports=ports,
            disk_path=pools.disk_path,
            image_file=images.checked_file,
            write_seed=write_seed,
        )
        return VmServices(
            identity=identity,
            clock=self._clock,
            tasks=self._tasks,
            store=store,
            hypervisor=hypervisor,
            ports=ports,
            resources=resources,
            report=VmReports(self._config.name, self._bus, self._tasks).publish,
        )

    def _make_folders(self) -> None:
        paths = self.paths
        for folder in (paths.state, paths.run, paths.pki):
            folder.mkdir(parents=True, exist_ok=True)
            os.chmod(folder, 0o711)  # noqa: S103 - QEMU's user passes through to its own folders and certificates
        self._write_qemu_folder()

    def _write_qemu_folder(self) -> None:
        migration = TlsFiles.in_folder(qemu_folder(self._config.pki))
        write_qemu_folder(migration, self.paths.qemu_pki, grp.getgrnam(QEMU_USER).gr_gid)

    async def _keep_certificates(self, streams: StreamServer, agent: HostAgent, hypervisor: Hypervisor) -> None:
        """Renew what is due, and have everything use what the files hold: also what was renewed and not used yet."""
        try:
            await self._certificates.renew()
        finally:
            streams.reload()
            self._write_qemu_folder()
            agent.renew(self._facts(await hypervisor.facts()))

    def _images(self, tls: TlsFiles, image_store: ImageStore) -> HostImages:
        builders = registry.image_builders(self._config.image_cache)
        return HostImages(store=image_store, builders=builders, importer=registry.IMAGE_IMPORTER, tls=tls)

    def _moves(self, services: VmServices, vms: Supervisor) -> MigrationManager:
        return MigrationManager(
            services,
            vms,
            self._ask_verdict,
            address=self._config.addresses["migration"],
            tls_hostname=qemu_identity(self._config.name),
        )

    def _pools(self, store: HostStore) -> HostPools:
        return HostPools(
            store=store,
            paths=self.paths,
            exporter=registry.exporter(self.paths, self._config.addresses["storage"]),
            open_driver=lambda pool: registry.POOL_DRIVERS[pool.driver](pool, self.paths),
        )

    def _streams(self, tls: TlsFiles, images: HostImages) -> StreamServer:
        handlers = {
            str(Purpose.IMAGE_READ): images.serve_read,
            str(Purpose.IMAGE_WRITE): images.serve_write,
            str(Purpose.CONSOLE): Consoles(self.paths).serve,
        }
        address = (self._config.addresses["management"], STREAM_PORT)
        return StreamServer(tls, address, self._redeem, handlers, clock=self._clock)

    def _repeat(self, name: str, work: Callable[[], Awaitable[None]], period: float) -> None:
        self._tasks.start(Reconciler(name, work, period=period, clock=self._clock).run(), name)

    async def _find_out(self, hypervisor: Hypervisor) -> HypervisorFacts:
        """What this machine can do, with a warning for all that it lacks; asked until there is an answer."""
        while True:
            try:
                facts = await hypervisor.facts()
                break
            except UnavailableError as error:
                log.warning("%s", error)
                await self._clock.sleep(ASK_AGAIN)
        _warn(facts.abilities)
        return facts

    async def _look_again(self, hypervisor: Hypervisor, agent: HostAgent) -> None:
        """What an earlier agent met at a bad moment may be there after all; nobody waits for this."""
        before, facts = await hypervisor.facts(), await hypervisor.retry_kvm()
        if facts.accel != before.accel:
            log.info("guests that start from now on run on %s", facts.accel)
        elif facts != before:
            _warn([ability for ability in facts.abilities if ability not in before.abilities])
        agent.renew(self._facts(facts))

    def _facts(self, facts: HypervisorFacts) -> HostFacts:
        return HostFacts(
            cpus=os.cpu_count() or 1,
            memory=psutil.virtual_memory().total,
            addresses=self._config.addresses,
            agent_version=importlib.metadata.version("serai"),
            certificates=self._certificates.expiries,
            **dict(facts),
        )

    async def _ask_verdict(self, host: str, ask: VerdictAsk) -> Verdict:
        answer = await self._bus.request(
            Subjects.verdict(host, self._config.name), encode(ask), timeout=VERDICT_TIMEOUT
        )
        return Verdict.model_validate_json(answer)

    async def _redeem(self, ticket: str, peer: str) -> Ticket:
        ask = RedeemTicket(ticket=ticket, holder=peer, server=f"host.{self._config.name}")
        answer = await self._bus.request(Subjects.redeem(self._config.name), encode(ask), timeout=10.0)
        return Ticket.model_validate_json(answer)


def _warn(abilities: Iterable[Ability]) -> None:
    for ability in abilities:
        if not ability.found:
            log.warning("%s: %s. %s", ability.name, ability.detail, ability.remedy)


async def _tidy(journal: Journal, vms: Supervisor) -> None:
    """Compact the journal, while no VM of this host is on the move."""
    if not vms.moving and journal.compact():
        log.info("the journal was compacted")


async def serve(config: AgentConfig, frame: service.Service) -> None:
    """Join the bus and work until asked to stop."""
    # The bus may be away when a host boots: its VMs start all the same.
    bus = await NatsBus.connect(config.bus_url, TlsFiles.in_folder(config.pki), f"host.{config.name}", timeout=None)
    ready = asyncio.Event()
    work = asyncio.create_task(HostParts(config, bus).run(ready))
    try:
        await unless_over(work, ready.wait())
        frame.ready(config.name)
        await unless_over(work, frame.stopping.wait())
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await bus.close()


def main(argv: Sequence[str]) -> int:
    """Read the configuration and run; the process's exit code."""
    if len(argv) != 2 or argv[0] != "--config":
        sys.stderr.write("usage: python -m serai.app.agent --config FILE\n")
        return 2
    config = AgentConfig.model_validate(json.loads(Path(argv[1]).read_text(encoding="utf-8")))
    return service.run(f"agent-{config.name}", lambda frame: serve(config, frame))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
