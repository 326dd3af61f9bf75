"""The `tgtd` process of a host: started in a session of its own, so that it outlives the agent, and found again.

Its control socket alone identifies it: the process that listens there is the daemon, and the kernel reports its
process id. (A number in a file may have been reused; the pid file is only for people and for clean-up.) A lock
that the daemon holds beside the socket keeps a second one from starting.

When the daemon cannot bind the address it was given, it listens on every address of the machine instead; so the address
is tried before, and what it really listens on is checked after.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from serai.drivers.storage.tgt_socket import TgtSocket
from serai.lib.process import Child, Watched, spawn
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError, InvalidError, UnavailableError

log = logging.getLogger(__name__)

START_TIMEOUT = 10.0
"""Seconds until a started daemon must answer; it needs some 30 ms on an idle machine."""

STOP_TIMEOUT = 5.0
"""Seconds that a daemon without targets may take to end before it is killed."""

IO_THREADS = 1
"""Threads for each volume. The daemon's own default, 16, makes 320 threads for 20 volumes; one keeps order cheaply."""

SYS_PIDFD_GETFD = 438
"""The same number on every architecture, as for all system calls since Linux 5.1."""

SIOCOUTQNSD = 0x894B
"""The ioctl for bytes not sent (linux/sockios.h)."""

_LONGEST_SOCKET = 107
"""Bytes in a Unix socket's path (unix(7))."""


class TgtDaemon:
    """One daemon, which listens on one `address` and TCP `port`, with its files in `folder`."""

    def __init__(self, folder: Path, address: IPv4Address | IPv6Address, port: int) -> None:
        self._folder = folder
        self._address = address
        self._port = port
        self._process: Watched | None = None
        # The daemon appends its control port's number, of which we use only 0.
        self.socket = TgtSocket(folder / "control.0")

    @property
    def portal(self) -> str:
        """Where it listens: `address:port`, an IPv6 address in brackets."""
        return f"{self._address}:{self._port}" if self._address.version == 4 else f"[{self._address}]:{self._port}"

    async def running(self) -> bool:
        """Whether the daemon is alive; takes over one that an earlier agent started."""
        pid = await self.socket.peer()
        if pid is None:
            await self.ended()
            return False
        if self._process is None or self._process.pid != pid or not self._process.alive:
            await self._reap()
            try:
                self._process = Watched(pid, os.pidfd_open(pid))
            except ProcessLookupError:
                return False
            # Held before it was asked again: now number and listener are known to be one.
            if await self.socket.peer() != pid:
                self._process = None
                raise UnavailableError("tgtd ended while it was being taken over", remedy="It will be tried again.")
            self._write_pid(pid)
        return True

    async def ended(self) -> bool:
        """Whether the daemon is over, or is within a second."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with time_limit(1):
                    await self._process.exited()
        await self._reap()
        return self._process is None

    async def start(self) -> None:
        """Start the daemon; it answers on its socket and listens on its address alone when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if len(os.fsencode(self.socket.path)) > _LONGEST_SOCKET:
            raise InvalidError(
                "the path of tgtd's control socket is too long",
                field="path",
                value=self.socket.path,
                remedy="Choose a shorter run directory.",
            )
        self._try_address()
        # Nothing secret is ever on the command line or in the environment.
        environment = {"TGT_IPC_SOCKET": str(self._folder / "control"), "PATH": os.environ.get("PATH", os.defpath)}
        argv = ["tgtd", "-f", "--nr_iothreads", str(IO_THREADS), "--iscsi", f"portal={self.portal}"]
        log = self._folder / "tgtd.log"
        child = await spawn(argv, stdout=log, stderr=log, env=environment, cwd="/", umask=0o077)
        self._process = child
        try:
            await self._answers(child)
            await self.listen_only_here()
        except BaseException:
            await child.kill()
            raise
        self._write_pid(child.pid)

    async def _answers(self, child: Child) -> None:
        """Wait until the daemon's socket is there, or the daemon is not."""
        with contextlib.suppress(TimeoutError):
            async with time_limit(START_TIMEOUT):
                while child.alive:
                    if await self.socket.peer() == child.pid:
                        return
                    await asyncio.sleep(0.01)
        raise HostError(
            "tgtd did not start", field="portal", value=self.portal, remedy=f"Read {self._folder / 'tgtd.log'}."
        )

    def _try_address(self) -> None:
        family = socket.AF_INET if self._address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((str(self._address), self._port))
                # Two sockets may be bound with that option, but only one may listen.
                trial.listen(1)
            except OSError as error:
                raise UnavailableError(
                    f"volumes cannot be exported there: {error.strerror}",
                    field="portal",
                    value=self.portal,
                    remedy="Give the address of this host's storage link, and end what else listens on the port.",
                ) from error

    async def listen_only_here(self) -> None:
        """Close every portal but ours, and open ours if it is not; raises HostError if that does not help."""
        portals = await self.socket.portals()
        if self.portal not in portals:
            await self.socket.new_portal(self.portal)
        for portal in portals:
            if portal != self.portal:
                await self.socket.delete_portal(portal)
        portals = await self.socket.portals()
        if portals != [self.portal]:
            raise HostError(
                f"tgtd listens on {', '.join(portals) or 'nothing'}",
                field="portal",
                value=self.portal,
                remedy=f"Read {self._folder / 'tgtd.log'}.",
            )

    async def logins_under_way(self) -> bool:
        """Whether somebody is connected who has no session (yet): the daemon does not tell, but the kernel does."""
        connected = await asyncio.to_thread(_established, self._address, self._port)
        return connected > 0 and connected > await self.socket.connections()

    async def cut(self, addresses: Collection[str]) -> None:
        """Shut down the connections with these peers that have data waiting which does not get through.

        The daemon closes a connection only when it can read from or write to it, which it never can while a frozen peer
        leaves it full. So the socket is shut down from here, through a duplicate of the daemon's own descriptor. One
        that was only busy logs in again by itself.
        """
        if self._process is not None:
            await asyncio.to_thread(self._cut, self._process, addresses)

    def _cut(self, process: Watched, addresses: Collection[str]) -> None:
        for number in (int(entry.name) for entry in Path(f"/proc/{process.pid}/fd").iterdir()):
            try:
                duplicate = _pidfd_getfd(process.pidfd, number)
            except OSError as error:
                if error.errno != errno.EBADF:
                    log.warning("the connections of tgtd cannot be reached: %s", error.strerror)
                    return
                continue
            try:
                if stat.S_ISSOCK(os.fstat(duplicate).st_mode):
                    self._cut_socket(duplicate, addresses)
            finally:
                os.close(duplicate)

    def _cut_socket(self, descriptor: int, addresses: Collection[str]) -> None:
        # OSError: it listens, and has no peer; or it was closed meanwhile.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                return
            peer, own = connection.getpeername(), connection.getsockname()
            if own[1] == self._port and peer[0] in addresses and _waiting(connection):
                log.warning("cutting the connection of %s, which takes no data", peer[0])
                connection.shutdown(socket.SHUT_RDWR)

    async def stop(self) -> None:
        """End the daemon, which should have no targets left; it is killed if it does not end by itself."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(UnavailableError, HostError):
            await self.socket.shut_down()
            # It looks whether it should end only after the next event, which a connection is.
            await self.socket.peer()
        try:
            async with time_limit(STOP_TIMEOUT):
                await process.exited()
        except TimeoutError:
            await process.kill()
        self._process = None
        for name in ("tgtd.pid", "control.0", "control.0.lock"):
            (self._folder / name).unlink(missing_ok=True)

    async def _reap(self) -> None:
        """Forget a dead daemon; if it was our child, it is a zombie until it is reaped here."""
        if self._process is not None and not self._process.alive:
            await self._process.exited()
            self._process = None

    def _write_pid(self, pid: int) -> None:
        (self._folder / "tgtd.pid").write_text(f"{pid}\n")


def _waiting(connection: socket.socket) -> int:
    """Return the bytes that could not be sent yet (tcp(7))."""
    count: int = struct.unpack("i", fcntl.ioctl(connection.fileno(), SIOCOUTQNSD, bytes(4)))[0]
    return count


def _pidfd_getfd(pidfd: int, number: int) -> int:
    """Duplicate another process's descriptor (pidfd_getfd(2), Linux 5.6; Python has no function for it)."""
    library = ctypes.CDLL(None, use_errno=True)
    duplicate: int = library.syscall(ctypes.c_long(SYS_PIDFD_GETFD), pidfd, number, 0)
    if duplicate < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return duplicate


def _established(address: IPv4Address | IPv6Address, port: int) -> int:
    """Count the TCP connections that are established with a local address and port (proc(5), /proc/net/tcp)."""
    # The kernel prints an address as 32-bit words in the machine's own byte order.
    words = (address.packed[start : start + 4] for start in range(0, len(address.packed), 4))
    local = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"
    table = Path("/proc/thread-self/net") / ("tcp" if address.version == 4 else "tcp6")
    rows = (line.split() for line in table.read_text().splitlines()[1:])
    return sum(1 for row in rows if row[1] == local and row[3] == "01")
