"""The controller's process: store, engine, gateway and API put together, served on a Unix socket and on loopback.

`python -m serai.app.controller --config FILE` runs it as a process, on NATS. `running` is the same within another
process, on whatever bus it has: `serai up` and tests use that.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from serai.controller.api.app import create_app
from serai.controller.api.auth import prepare
from serai.controller.api.call import Api, OpenConsole, ReceiveUpload
from serai.controller.hosts.listening import listening
from serai.controller.hosts.relay import Relay
from serai.controller.hosts.uploads import Uploads
from serai.controller.jobs.engine import Engine
from serai.controller.jobs.workflow import Services, Workflow
from serai.controller.reconcilers import leftovers, retention
from serai.controller.reconcilers.certificates import PERIOD, Certificates
from serai.controller.reconcilers.leftovers import ClearLeftovers
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.controller.workflows import WORKFLOWS
from serai.lib import natsserver, service
from serai.lib.alone import alone
from serai.lib.bus import Bus
from serai.lib.clock import SystemClock
from serai.lib.ids import new_secret
from serai.lib.natsbus import NatsBus
from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.lib.reconcile import Reconciler
from serai.lib.tasks import Tasks
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.resource import Frozen

IDENTITY = "controller"
DATABASE = "serai.db"
SECRET = ("installation", "secret")
"""Where in the store the secret is from which CHAP passwords are derived."""
KEEP_ALIVE = 60
"""Seconds for which an idle connection is kept: longer than any client of ours keeps it, which then never uses one that
is closed at the same moment."""
WS_MESSAGE_MAX = 64 << 10
"""Bytes that a client of a console sends in one message: it is held whole, and nobody types that much at once."""
GRACE = 2
"""Seconds that answers under way get when the server goes down; jobs are picked up by the next start anyway."""


class ControllerConfig(Frozen):
    """Where it keeps its state, where it listens, and how it reaches the bus.

    The API listens on loopback unless told otherwise: it is plain HTTP, and whoever has the token rules everything.
    """

    state: Path = Path("/var/lib/serai/controller")
    bus_url: str = "tls://127.0.0.1:4222"
    pki: Path | None = None
    """Folder of ca.pem and identity.pem, the controller's own certificate and key."""
    ca: Path | None = None
    """Folder of the installation's CA; none: certificates are renewed by hand."""
    bus_folder: Path | None = None
    """Folder of the nats-server that shows the controller's certificate; none: there is no such server here."""
    listen: str | None = "127.0.0.1:7440"
    """`address:port`; port 0 takes a free one, none listens on the socket only."""
    socket: Path | None = Path("/run/serai/api.sock")
    token_file: Path = Path("/run/serai/api.token")


@dataclass
class Controller:
    """A running controller's parts."""

    config: ControllerConfig
    store: Store
    bus: Bus
    engine: Engine
    url: str | None = None
    """Where the API is on TCP, once it listens."""


@dataclass(frozen=True)
class Extras:
    """What workflows and streams add, made once store and gateway are there."""

    workflows: Mapping[str, Workflow[Any, Any]]
    services: Services
    open_console: OpenConsole | None = None
    receive_upload: ReceiveUpload | None = None


MakeExtras = Callable[[Store, Rights], Awaitable[Extras]]


class _Server(uvicorn.Server):
    """Signals are the process's matter, not the server's: it may be one part of a larger process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@contextlib.asynccontextmanager
async def running(config: ControllerConfig, bus: Bus, make_extras: MakeExtras) -> AsyncIterator[Controller]:
    """A controller that serves inside the block; the bus stays its owner's. Raises SeraiError, OSError."""
    async with contextlib.AsyncExitStack() as stack:
        # A second controller would pick up jobs that the first is running.
        stack.enter_context(alone(config.state / "controller.lock", "controller"))
        store = await Store.open(config.state / DATABASE)
        stack.push_async_callback(store.close)
        rights = Rights()
        hosts = await stack.enter_async_context(listening(bus, store, rights))
        extras = await make_extras(store, rights)
        engine = Engine(store, hosts.gateway, extras.workflows, extras.services)
        auth = await prepare(store, config.token_file)
        api = Api(store, engine, rights, extras.open_console, extras.receive_upload, hosts.presence.heard)
        await engine.start()
        stack.push_async_callback(engine.stop)
        tasks = await stack.enter_async_context(Tasks("controller"))
        reconcilers = [
            Reconciler("retention", functools.partial(retention.tidy, store), period=retention.PERIOD),
            Reconciler(
                "leftovers",
                ClearLeftovers(store, hosts.gateway, rights).act,
                period=leftovers.PERIOD,
                news=rights.news,
            ),
        ]
        if config.ca is not None and config.pki is not None:
            certificates = await _certificates(config.ca, config.pki, config, store)
            subscription = await certificates.listen(bus)
            stack.push_async_callback(subscription.unsubscribe)
            reconcilers.append(Reconciler("certificates", certificates.look, period=PERIOD))
        for reconciler in reconcilers:
            tasks.start(reconciler.run(), reconciler.name)
        controller = Controller(config, store, bus, engine)
        await stack.enter_async_context(_serving(create_app(api, auth), api, controller))
        yield controller


async def _certificates(ca: Path, pki: Path, config: ControllerConfig, store: Store) -> Certificates:
    async def reload() -> None:
        if config.bus_folder is not None:
            await natsserver.reload(config.bus_folder)

    authority = await asyncio.to_thread(CertificateAuthority.load, ca)
    return Certificates(store, authority, TlsFiles.in_folder(pki), SystemClock(), reload)


@contextlib.asynccontextmanager
async def _serving(app: object, api: Api, controller: Controller) -> AsyncIterator[None]:
    sockets = _listen(controller.config)
    for one in sockets:
        if one.family != socket.AF_UNIX:
            address, port = one.getsockname()[:2]
            controller.url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    server = _Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]  # uvicorn's own protocol types do not describe FastAPI's app
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="websockets-sansio",
            ws_max_size=WS_MESSAGE_MAX,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=KEEP_ALIVE,
            server_header=False,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=sockets), name="api")
    try:
        while not server.started:
            if serving.done():
                await serving
                raise InvalidError("the API server ended before it began", field="listen")
            await asyncio.sleep(0.005)
        yield
    finally:
        api.stopping.set()
        server.should_exit = True
        await serving
        if controller.config.socket is not None:
            controller.config.socket.unlink(missing_ok=True)


def _listen(config: ControllerConfig) -> list[socket.socket]:
    found = []
    if config.socket is not None:
        found.append(_unix_socket(config.socket))
    if config.listen is not None:
        found.append(_tcp_socket(config.listen))
    if not found:
        raise InvalidError("the API listens nowhere", field="listen", remedy="Give an address or a socket path.")
    return found


def _unix_socket(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                # Left behind by a controller that was killed.
                path.unlink()
            else:
                raise ConflictError(
                    "another controller serves this socket", field="socket", value=path, remedy="Stop it first."
                )
    listening = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(mask)
    listening.listen(128)
    return listening


def _tcp_socket(listen: str) -> socket.socket:
    address, _, port = listen.rpartition(":")
    if not port.isdecimal() or not address:
        raise InvalidError("not an address with a port", field="listen", value=listen, remedy="Use 127.0.0.1:7440.")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.strip("[]"), int(port)))
    except OSError as error:
        listening.close()
        raise ConflictError(
            f"the API cannot listen: {error.strerror}", field="listen", value=listen, remedy="Choose another port."
        ) from error
    listening.listen(128)
    return listening


def standard_extras(tls: TlsFiles | None) -> MakeExtras:
    """Workflows, consoles and uploads; `tls` is the controller's own identity on the data channel."""

    async def make(store: Store, rights: Rights) -> Extras:
        return await _extras(store, rights, tls)

    return make


async def _extras(store: Store, rights: Rights, tls: TlsFiles | None) -> Extras:
    # CHAP passwords are derived from the installation's own secret, made once and kept in the store.
    async with store.transaction() as tx:
        secret = await tx.secrets.get(*SECRET)
        if secret is None:
            secret = new_secret()
            await tx.secrets.put(*SECRET, secret)
    uploads = Uploads()
    relay = Relay(store, uploads, tls)
    services = Services(rights, uploads, secret.encode())
    return Extras(WORKFLOWS, services, relay.open_console, relay.receive_upload)


async def serve(config: ControllerConfig, frame: service.Service) -> None:
    """Join the NATS bus and work until asked to stop."""
    if config.pki is None:
        raise InvalidError("the bus needs certificates", field="pki", remedy="Name the folder that holds them.")
    tls = TlsFiles.in_folder(config.pki)
    bus = await NatsBus.connect(config.bus_url, tls, IDENTITY, timeout=None)
    try:
        async with running(config, bus, standard_extras(tls)) as controller:
            frame.ready(controller.url or str(config.socket))
            await frame.stopping.wait()
    finally:
        await bus.close()


def main(argv: Sequence[str]) -> int:
    """Read the configuration and run; the process's exit code."""
    if len(argv) != 2 or argv[0] != "--config":
        sys.stderr.write("usage: python -m serai.app.controller --config FILE\n")
        return 2
    config = ControllerConfig.model_validate_json(Path(argv[1]).read_text(encoding="utf-8"))
    # A guest that has just moved to this machine needs its processor more than the book-keeping about it does.
    service.run_in_background()
    return service.run("controller", lambda frame: serve(config, frame))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
