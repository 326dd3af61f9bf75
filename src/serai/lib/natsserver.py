"""A `nats-server` of our own: its configuration, and the process.

The server knows an identity by the certificate it shows (`verify_and_map`: the DNS name in it is the user), and each
identity may publish and subscribe what its `Permissions` say, receive on inboxes of its own, and publish to inboxes;
nothing else. An identity that is not in the configuration cannot connect.

Only the receiver of a request knows the inbox (`natsbus`), so that the right to publish to inboxes is the right to
reply. The server's own `allow_responses` is not used: it lets an identity publish wherever a message that it gets asks
for a reply, and the sender of that message may be the same identity, or an accomplice.

`start` it, `reload` it with more identities (connections stay), `stop` it. The function `reload` does for a server that
another process started: it takes in a renewed certificate, too. It outlives a starter that is killed, and
the next one takes it over. That it listens is read from the ports file which it writes once it does, so this also
works for a server in another network namespace (`prefix`).
"""

import asyncio
import json
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from serai.lib import atomicfile, process
from serai.lib.bus import MAX_PAYLOAD
from serai.lib.pki import TlsFiles
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError

log = logging.getLogger(__name__)

ANY_PORT = -1
"""The server picks a free port; see `NatsServer.port`."""

POLL = 0.02
"""Seconds between two looks at the files by which the server says that it is ready."""

CONFIG_FILE, PID_FILE, LOG_FILE, CONSOLE_FILE = "nats.conf", "nats.pid", "nats.log", "nats.out"

LOG_LIMIT = 4 * 1024 * 1024
"""Bytes after which the server turns its log file over."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects (wildcards allowed) to which an identity may publish, and to which it may subscribe."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NatsConfig:
    """What one server needs: where it listens, who it is, who may do what."""

    host: str
    port: int
    tls: TlsFiles
    permissions: Mapping[str, Permissions] = field(default_factory=dict)


INBOX = "_INBOX"
"""The first token of all inboxes."""


def inbox_prefix(identity: str) -> str:
    """Return the start of the subjects on which the identity, and nobody else, receives replies."""
    return f"{INBOX}.{identity}"


def render(config: NatsConfig, folder: Path) -> str:
    """Return the configuration as text (nats-server reads JSON with comments)."""
    settings = {
        "listen": f"{_bracketed(config.host)}:{config.port}",
        "max_payload": MAX_PAYLOAD,
        # A peer that vanished without a word (a pulled cable, a lost host) is dropped after about 30 s.
        "ping_interval": "10s",
        "ping_max": 3,
        "ports_file_dir": str(folder),
        "log_file": str(folder / LOG_FILE),
        "log_size_limit": LOG_LIMIT,
        "tls": {
            "cert_file": str(config.tls.cert),
            "key_file": str(config.tls.key),
            "ca_file": str(config.tls.ca),
            "verify_and_map": True,
            "timeout": 5,
        },
        "authorization": {
            "users": [
                {"user": identity, "permissions": _rules(identity, permissions)}
                for identity, permissions in sorted(config.permissions.items())
            ]
        },
    }
    return json.dumps(settings, indent=2) + "\n"


def _rules(identity: str, permissions: Permissions) -> dict[str, object]:
    return {
        "publish": {"allow": [f"{INBOX}.>", *permissions.publish]},
        "subscribe": {"allow": [f"{inbox_prefix(identity)}.>", *permissions.subscribe]},
    }


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class NatsServer:
    """One server process, with its configuration and log in `folder` (made with mode 0700 if absent).

    `prefix` is put before its command line, to start it in a namespace; it must exec in place.
    """

    def __init__(
        self, config: NatsConfig, folder: Path, *, binary: str = "nats-server", prefix: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.folder = folder
        self._binary = binary
        self._prefix = tuple(prefix)
        self._process: process.Watched | None = None

    @property
    def port(self) -> int:
        """The port it listens on; ANY_PORT until it was started."""
        return self.config.port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"tls://{_bracketed(self.config.host)}:{self.config.port}"

    @property
    def pid(self) -> int | None:
        """The number of the process; None unless it runs."""
        return self._process.pid if self._process is not None and self._process.alive else None

    async def start(self, timeout: float = 15) -> None:
        """Start it and return when it accepts connections; raises HostError with its last words.

        One that still runs from this folder (its starter was killed) is taken over, with its connections.
        """
        if self.pid is not None:
            raise RuntimeError("nats-server runs already")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if await self._take_over():
            return
        for stale in self.folder.glob("*.ports"):
            stale.unlink()
        self._write()
        argv = [*self._prefix, self._binary, "-c", str(self.folder / CONFIG_FILE)]
        child = await process.spawn(argv, stdout=self.folder / CONSOLE_FILE, stderr=self.folder / CONSOLE_FILE)
        self._process = child
        atomicfile.write_text(self.folder / PID_FILE, f"{child.pid}\n")
        try:
            async with time_limit(timeout):
                self.config = replace(self.config, port=await self._listening(child))
        except TimeoutError:
            await child.kill()
            raise HostError(f"nats-server did not listen within {timeout:g} s: {_last_words(self.folder)}") from None
        except BaseException:
            await child.kill()
            raise
        log.info("nats-server %d listens on %s:%d", child.pid, self.config.host, self.config.port)

    async def reload(self, permissions: Mapping[str, Permissions], timeout: float = 10) -> None:
        """Give it new permissions and return when they hold; connections of identities that stay are kept.

        Raises HostError if the server refuses the configuration (it goes on with the old one) or does not run.
        """
        if self._process is None or not self._process.alive:
            raise HostError("nats-server does not run, so it cannot take a new configuration")
        before = self.config
        self.config = replace(self.config, permissions=dict(permissions))
        self._write()
        try:
            await _reload(self._process, self.folder, timeout)
        except RefusedError:
            # The next start must find the configuration that works.
            self.config = before
            self._write()
            raise

    async def stop(self, timeout: float = 10) -> None:
        """End it in order, by force after `timeout` seconds; harmless if it does not run."""
        if self._process is not None:
            await self._process.terminate(timeout)

    async def kill(self) -> None:
        if self._process is not None:
            await self._process.kill()

    def _write(self) -> None:
        atomicfile.write_text(self.folder / CONFIG_FILE, render(self.config, self.folder), mode=0o600)

    async def _take_over(self) -> bool:
        """Hold the server that an earlier object started here, if it runs and listens where it should."""
        held = _held(self.folder)
        if held is None:
            return False
        port = self._reported_port()
        if port is None or self.config.port not in (port, ANY_PORT):
            log.warning("nats-server %d is in the way: ending it", held.pid)
            await held.terminate()
            return False
        self._process = held
        self.config = replace(self.config, port=port)
        await self.reload(self.config.permissions)
        log.info("took over nats-server %d on %s:%d", held.pid, self.config.host, port)
        return True

    async def _listening(self, child: process.Child) -> int:
        while (port := self._reported_port()) is None:
            if not child.alive:
                code = await child.wait()
                raise HostError(f"nats-server ended with code {code}: {_last_words(self.folder)}")
            await asyncio.sleep(POLL)
        return port

    def _reported_port(self) -> int | None:
        for file in self.folder.glob("*.ports"):
            try:
                urls = json.loads(file.read_text()).get("nats")
            except (json.JSONDecodeError, FileNotFoundError):
                continue  # still being written
            if urls:
                return urlsplit(str(urls[0])).port
            # It listens on any address and knows of none: no interface is up.
            return None if self.config.port == ANY_PORT else self.config.port
        return None


class RefusedError(HostError):
    """The server does not take its new configuration, and goes on with the old one."""


async def reload(folder: Path, timeout: float = 10) -> None:
    """Have the server of a folder read its configuration and certificates again; connections stay.

    One that does not run reads them when it starts. Raises HostError if it refuses.
    """
    held = _held(folder)
    if held is not None:
        await _reload(held, folder, timeout)


def _held(folder: Path) -> process.Watched | None:
    """The server that somebody started in a folder, if it runs."""
    try:
        return process.adopt(int((folder / PID_FILE).read_text()), expect=str(folder / CONFIG_FILE))
    except FileNotFoundError:
        return None


async def _reload(server: process.Watched, folder: Path, timeout: float) -> None:
    start = (folder / LOG_FILE).stat().st_size
    server.send_signal(signal.SIGHUP)
    try:
        async with time_limit(timeout):
            await _reloaded(folder, start)
    except TimeoutError:
        raise HostError(f"nats-server did not reload within {timeout:g} s: {_last_words(folder)}") from None


async def _reloaded(folder: Path, start: int) -> None:
    log_file = folder / LOG_FILE
    while True:
        with log_file.open("rb") as file:
            file.seek(start if start <= log_file.stat().st_size else 0)
            said = file.read()
        if b"Reloaded server configuration" in said:
            return
        if b"Failed to reload" in said:
            raise RefusedError(f"nats-server refused its new configuration: {_last_words(folder)}")
        await asyncio.sleep(POLL)


def _last_words(folder: Path) -> str:
    words = b""
    for file in (folder / CONSOLE_FILE, folder / LOG_FILE):
        if file.exists():
            words += file.read_bytes()[-process.STDERR_TAIL :]
    return words.decode(errors="replace")[-process.STDERR_TAIL :].strip()
