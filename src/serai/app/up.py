"""The one-machine form: controller and agent in one process, with the in-process bus and SQLite.

Everything is below two folders. VMs and their QEMUs outlive this process, and are adopted when it starts again. Streams
(images, consoles) go through loopback with the same certificates and tickets as between machines.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from serai.app.agent import AgentConfig, HostParts
from serai.app.controller import IDENTITY, ControllerConfig, running, standard_extras
from serai.client.context import Context
from serai.client.http import Client
from serai.lib import netlink, service
from serai.lib.membus import MemBus
from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.lib.tasks import unless_over
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError, NotFoundError
from serai.schema.host import HostState
from serai.schema.ids import NAME_MAX, HostName, is_id
from serai.schema.job import JobState
from serai.schema.network import NetworkCreate, NetworkWish
from serai.schema.resource import Frozen
from serai.schema.volume import ExportKind, PoolCreate, PoolSpec

LOOPBACK = "127.0.0.1"
POOL = "local"
NETWORK = "default"
BRIDGE = "br-serai"
SUBNET = IPv4Network("192.168.127.0/24")
"""Of the network `default`: VMs and this machine reach one another; an uplink is taken on purpose, never by itself."""
READY = 60.0


class UpConfig(Frozen):
    """`listen` is where the API is beside its socket: loopback unless told otherwise. `allow_unsandboxed`: see the
    agent's configuration.
    """

    name: HostName
    state: Path = Path("/var/lib/serai")
    run: Path = Path("/run/serai")
    listen: str | None = "127.0.0.1:7440"
    allow_unsandboxed: bool = False

    @property
    def socket(self) -> Path:
        """The API's socket, where the CLI looks by itself if `run` is the usual one."""
        return self.run / "api.sock"

    @property
    def token(self) -> Path:
        return self.run / "api.token"


def own_name() -> str:
    """This machine's host name as a resource's name; a container's, which is often an id, as `host-<id>`."""
    plain = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().split(".")[0].lower())[:NAME_MAX].strip("-") or "host"
    return f"host-{plain}" if is_id(plain) else plain


def _certificates(config: UpConfig) -> tuple[TlsFiles, Path]:
    """The controller's identity, and the folder of the host's; made at the first start."""
    authority = CertificateAuthority.ensure(config.state / "controller/ca")
    controller, host = config.state / "controller/pki", config.state / "pki"
    if not TlsFiles.in_folder(controller).cert.exists():
        authority.issue(IDENTITY, dns=["localhost"], ips=[LOOPBACK], dir=controller)
    authority.issue_host(config.name, host)
    return TlsFiles.in_folder(controller), host


async def serve(config: UpConfig, frame: service.Service) -> None:
    """Work until asked to stop; VMs go on. Raises ConflictError if another one runs on the same state."""
    for folder in (config.state, config.run):
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o711)  # noqa: S103 - QEMU's user passes through to its own folders
    # Our own requests to our own API are no news.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    tls, host_pki = await asyncio.to_thread(_certificates, config)
    bus = MemBus()
    state = config.state / "controller"
    controller = ControllerConfig(
        state=state,
        pki=state / "pki",
        ca=state / "ca",
        listen=config.listen,
        socket=config.socket,
        token_file=config.token,
    )
    agent = AgentConfig(
        name=config.name,
        pki=host_pki,
        addresses={"management": LOOPBACK, "storage": LOOPBACK, "migration": LOOPBACK},
        state=config.state,
        run=config.run,
        allow_unsandboxed=config.allow_unsandboxed,
    )
    try:
        async with running(controller, bus, standard_extras(tls)) as parts:
            ready = asyncio.Event()
            work = asyncio.create_task(HostParts(agent, bus).run(ready), name="agent")
            try:
                await unless_over(work, ready.wait())
                await unless_over(work, _furnish(config))
                frame.ready(parts.url or str(config.socket))
                await unless_over(work, frame.stopping.wait())
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
    finally:
        await bus.close()


async def _furnish(config: UpConfig) -> None:
    """A pool and a network, if this installation has none of that name yet; the network's bridge, after each boot."""
    await netlink.call(_bridge)
    context = Context(socket=config.socket, token_file=config.token)
    async with Client(context) as client:
        async with time_limit(READY):
            while True:
                hosts = [row async for row in client.items("host.list")]
                if any(row.name == config.name and row.status.state is HostState.ONLINE for row in hosts):
                    break
                await asyncio.sleep(0.05)
        try:
            await client.call("network.show", NETWORK)
        except NotFoundError:
            spec = NetworkWish(bridge=BRIDGE, subnet=SUBNET, gateway=IPv4Address(SUBNET[1]))
            await client.call("network.create", body=NetworkCreate(name=NETWORK, spec=spec))
        try:
            await client.call("pool.show", POOL)
        except NotFoundError:
            pool = PoolSpec(host=config.name, export=ExportKind.NONE)
            job = await client.wait_job((await client.call("pool.create", body=PoolCreate(name=POOL, spec=pool))).id)
            if job.state is not JobState.DONE:
                raise HostError(
                    f"the pool {POOL} could not be made: {job.error.sentence() if job.error else job.state}"
                ) from None


def _bridge() -> None:
    if not netlink.exists(BRIDGE):
        netlink.add_bridge(BRIDGE, mac="02:53:45:52:41:01")
    netlink.set_link_sync(BRIDGE, up=True)
    netlink.add_address(BRIDGE, f"{SUBNET[1]}/{SUBNET.prefixlen}")
