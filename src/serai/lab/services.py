"""The programs of a lab: certificates, bus, controller, an agent for each host; and what a newcomer needs to begin.

All are real and run as they would on machines of their own, in the namespaces of their node. They are recorded as they
start, outlive the command that started them, and end with the lab.

The lab's network has no way out, yet images are built on hosts, from packages. So agents find the programs of
`FETCHERS` in a folder of the lab first, as scripts that run the real one in the machine's own network.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path

from serai.client import context as contexts
from serai.client.context import Context
from serai.client.http import Client
from serai.lab import enter, topology
from serai.lab.state import OWN_PATHS, LabFolder, LabState, ProcessRecord
from serai.lab.topology import Plan
from serai.lib import atomicfile, process
from serai.lib.natsserver import NatsConfig, NatsServer, Permissions
from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.schema.errors import HostError, NotFoundError, SeraiError, UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.job import Job, JobState
from serai.schema.network import NetworkCreate, NetworkWish
from serai.schema.subjects import controller_permissions, host_permissions
from serai.schema.volume import ExportKind, PoolCreate, PoolDriverName, PoolSpec

NATS_PORT = 4222
READY_TIMEOUT = 120.0
"""Seconds until all hosts must be online; an agent first measures what its machine can do, guests included."""
FETCHERS = ("apt-get", "mmdebstrap")
"""Programs that agents start to get packages."""
POLL = 0.05
POOL, NETWORK = "shared0", "lan"
LAST_WORDS = 500
"""Characters of a log's last line that are repeated."""

Say = Callable[[str], None]


class Programs:
    """The lab's processes as they are started, each written down at once."""

    def __init__(self, folder: LabFolder, now: LabState) -> None:
        self._folder = folder
        self.state = now
        self._held: dict[str, process.Watched] = {}

    def record(self, role: str, watched: process.Watched) -> None:
        """Write a process down."""
        start = process.start_time(watched.pid)
        if start is None:
            raise HostError(f"{role} ended at once: {self.last_words(role)}")
        self._held[role] = watched
        record = ProcessRecord(role=role, pid=watched.pid, start=start)
        self.update(processes=[*(other for other in self.state.processes if other.role != role), record])

    def update(self, **changes: object) -> None:
        """Change the state, and the file."""
        self.state = self.state.model_copy(update=changes)
        self._folder.write(self.state)

    async def start(self, role: str, config: dict[str, object]) -> None:
        """Start one of Serai's own programs with its configuration in a file; `role` is `PROGRAM NODE`."""
        atomicfile.write_text(self._config(role), json.dumps(config, indent=2) + "\n", mode=0o600)
        await self._launch(role)

    async def restart(self, role: str) -> None:
        """Start one of Serai's own programs again with the configuration that it had. Raises NotFoundError."""
        if not self._config(role).exists():
            raise NotFoundError("the lab has no such program", field="role", value=role)
        await self._launch(role)

    async def _launch(self, role: str) -> None:
        program, node = role.split(" ", 1)
        argv = [*enter.prefix(self._folder, self.state, node), *enter.python(f"serai.app.{program}")]
        argv += ["--config", str(self._config(role))]
        log = self._log(role)
        self.record(role, await process.spawn(argv, stdout=log, stderr=log, env=enter.environment(self._folder)))

    def _config(self, role: str) -> Path:
        return self._folder.path / f"{role.replace(' ', '-')}.json"

    def check(self) -> None:
        """Raises HostError, with its last words, if one is over."""
        for role, watched in self._held.items():
            if not watched.alive:
                raise HostError(f"{role} ended before the lab was up: {self.last_words(role)}")

    def last_words(self, role: str) -> str:
        """The last line of a program's log, and where the rest is."""
        log = self._log(role)
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"{last[-LAST_WORDS:]} (its log: {log})"

    def _log(self, role: str) -> Path:
        return self._folder.logs / f"{role.replace(' ', '-')}.log"


async def start(folder: LabFolder, now: LabState, say: Say) -> LabState:
    """Start everything in a lab whose links are up; return its state once all hosts are online.

    Raises whatever failed; what was started goes on then, and is the caller's to take away.
    """
    plan = now.plan
    programs = Programs(folder, now)
    say("certificates")
    tls = await asyncio.to_thread(_certificates, folder, plan)
    _let_fetchers_out(folder)
    say("bus, controller and agents")
    url = await start_bus(folder, plan, tls, programs)
    await programs.start(
        "controller ctl",
        {
            "state": str(folder.controller / "state"),
            "bus_url": url,
            "pki": str(folder.controller / "pki"),
            "ca": str(folder.controller / "ca"),
            "bus_folder": str(folder.controller / "nats"),
            "socket": str(folder.api_socket),
            "token_file": str(folder.token),
        },
    )
    context = Context(socket=folder.api_socket, token_file=folder.token, via={"netns": plan.netns("ctl")})
    deadline = time.monotonic() + READY_TIMEOUT
    await until_answers(folder, programs, deadline)
    # Not before: an agent that finds no controller tries again only with its next report, seconds later.
    for host in plan.hosts:
        await programs.start(f"agent {host}", _agent(plan, host, url))
    async with Client(context) as client:
        await until_online(client, plan, programs, deadline)
        say("default pool and network")
        await _defaults(client, plan)
    _choose(folder, context, programs)
    return programs.state


def _certificates(folder: LabFolder, plan: Plan) -> TlsFiles:
    """The CA, and an identity for each; returns the controller's."""
    authority = CertificateAuthority.create(folder.controller / "ca")
    for host in plan.hosts:
        pki = folder.host(host) / "state" / "pki"
        authority.issue_host(host, pki)
        # QEMU's user passes through to the folder of its own in there; the keys beside it are root's alone.
        pki.chmod(0o711)
    addresses = [str(plan.address("ctl")), str(plan.address("ctl", "san")), "127.0.0.1"]
    return authority.issue("controller", dns=["ctl", "localhost"], ips=addresses, dir=folder.controller / "pki")


def _let_fetchers_out(folder: LabFolder) -> None:
    folder.programs.mkdir(mode=0o755)
    for name in FETCHERS:
        real = shutil.which(name)
        if real is not None:
            script = folder.programs / name
            words = ["nsenter", f"--net={folder.outside}", "--", real]
            script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            script.chmod(0o755)


async def start_bus(folder: LabFolder, plan: Plan, tls: TlsFiles, programs: Programs) -> str:
    """Start the lab's nats-server, for the first time or after it was killed; return its URL."""
    rights = {"controller": controller_permissions()}
    rights |= {f"host.{host}": host_permissions(host) for host in plan.hosts}
    permissions = {who: Permissions(tuple(publish), tuple(subscribe)) for who, (publish, subscribe) in rights.items()}
    config = NatsConfig(str(plan.address("ctl")), NATS_PORT, tls, permissions)
    server = NatsServer(config, folder.controller / "nats", prefix=enter.prefix(folder, programs.state, "ctl"))
    await server.start()
    pid = server.pid
    held = None if pid is None else process.adopt(pid, expect=str(folder.controller / "nats"))
    if held is None:
        raise HostError("nats-server ended as soon as it had started")
    programs.record("nats-server ctl", held)
    return server.url


def _agent(plan: Plan, host: str, url: str) -> dict[str, object]:
    lan, san = str(plan.address(host)), str(plan.address(host, "san"))
    return {
        "name": host,
        "bus_url": url,
        "pki": str(OWN_PATHS["state"] / "pki"),
        "addresses": {"management": lan, "migration": san, "storage": san},
        "state": str(OWN_PATHS["state"]),
        "run": str(OWN_PATHS["run"]),
    }


async def until_answers(folder: LabFolder, programs: Programs, deadline: float) -> None:
    """Wait until the API's socket and token are there."""
    while not (folder.api_socket.exists() and folder.token.exists()):
        programs.check()
        if time.monotonic() > deadline:
            raise UnavailableError(f"the controller is not up in time: {programs.last_words('controller ctl')}")
        await asyncio.sleep(POLL)


async def hellos(client: Client, programs: Programs, deadline: float) -> dict[str, datetime | None]:
    """When the controller last heard each host's hello, by name; waits until it answers."""
    while True:
        programs.check()
        try:
            return {host.name: host.status.seen async for host in client.items("host.list")}
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(POLL)


async def until_online(
    client: Client,
    plan: Plan,
    programs: Programs,
    deadline: float,
    before: Mapping[str, datetime | None] | None = None,
) -> None:
    """Wait until the controller has heard of every host: of those in `before` another hello than that one."""
    known = set((before or {}).items())
    missing = set(plan.hosts)
    while True:
        programs.check()
        reason = ""
        try:
            async for host in client.items("host.list"):
                if host.status.state is HostState.ONLINE and (host.name, host.status.seen) not in known:
                    missing.discard(host.name)
        except UnavailableError as error:
            reason = f": {error}"
        if not missing:
            return
        if time.monotonic() > deadline:
            first = min(missing)
            raise UnavailableError(
                f"not online within {READY_TIMEOUT:g} s: {', '.join(sorted(missing))}{reason}: "
                f"{programs.last_words(f'agent {first}')}"
            )
        await asyncio.sleep(POLL)


async def _defaults(client: Client, plan: Plan) -> None:
    """A pool on the first host that all hosts reach, and the network that the hosts' bridges are."""
    subnet = topology.LAN
    first, last = (IPv4Address(subnet[number]) for number in (topology.VM_FIRST, topology.VM_LAST))
    spec = NetworkWish(bridge=topology.HOST_BRIDGE, subnet=subnet, range_start=first, range_end=last)
    await client.call("network.create", body=NetworkCreate(name=NETWORK, spec=spec))
    pool = PoolSpec(host=HostName(plan.hosts[0]), driver=PoolDriverName.DIR, export=ExportKind.ISCSI)
    job: Job = await client.call("pool.create", body=PoolCreate(name=POOL, spec=pool))
    job = await client.wait_job(job.id)
    if job.state is not JobState.DONE:
        raise HostError(f"the pool {POOL} could not be made: {job.error.sentence() if job.error else job.state}")


def _choose(folder: LabFolder, context: Context, programs: Programs) -> None:
    """Make the lab's API the one that commands speak to; written down first, so that `down` finds it in any case."""
    file = contexts.config_file().absolute()
    try:
        known = contexts.load(file)
    except SeraiError as error:
        raise HostError(f"the lab's context cannot be stored: {error}") from error
    programs.update(contexts=file, contexts_made=not file.exists(), previous_context=known.current)
    contexts.put(folder.name, context, file=file)
