"""The control socket of `tgtd`, spoken directly.

`tgtadm` takes CHAP secrets as arguments, which every user of the machine can read in the process list; so we speak to
the daemon ourselves. One connection carries one request: a fixed record in the machine's own byte order, followed by
the parameters as text that ends with a zero byte; the answer is an error number, a length and, for `show`, text. The
record's layout is that of tgt 1.0.80 to 1.0.97. The daemon talks only to processes of its own user.

Traps of the daemon that callers must know:

- A target without any bound account lets initiators in without a secret, and an account that is unbound leaves a hole
  in a list that the daemon then reads as if it were dense: later accounts stop working, and `show` crashes the
  daemon. Unbind from the end, in reverse order of binding, then bind the rest again.
- Unbinding an initiator does not end its session; its connections must be closed one by one.
- Accounts are global, by user name: one name cannot have two secrets.
- A connection that ends without a whole request is never closed: the daemon reads from it for ever, with all of a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from serai.drivers.storage.base import Session
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError, UnavailableError

REQUEST = struct.Struct("@II64sIiQQIIIIII")
"""mode, op, driver, length, tid, sid, lun, cid, host number, device type, account direction, pack, force: 120 bytes."""

RESPONSE = struct.Struct("@II")
"""error, length: 8 bytes; the length counts these too."""

MOST_PARAMETERS = 8 * 1024
"""Bytes of parameters that the daemon takes in one request."""

DRIVER = b"iscsi"
ANSWER_TIMEOUT = 10.0
"""Seconds: the daemon answers in well under a millisecond, unless the disk below is stuck."""


class Op(IntEnum):
    """What to do, by the daemon's numbers."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5


class Mode(IntEnum):
    """What to do it to."""

    SYSTEM = 0
    TARGET = 1
    DEVICE = 2
    PORTAL = 3
    CONNECTION = 6
    ACCOUNT = 7


class Errno(IntEnum):
    """The daemon's error numbers."""

    UNKNOWN_ERR = 1
    NOMEM = 2
    NO_DRIVER = 3
    NO_TARGET = 4
    NO_LUN = 5
    NO_SESSION = 6
    NO_CONNECTION = 7
    NO_BINDING = 8
    TARGET_EXIST = 9
    LUN_EXIST = 10
    BINDING_EXIST = 11
    ACL_EXIST = 12
    ACL_NOEXIST = 13
    USER_EXIST = 14
    NO_USER = 15
    TOO_MANY_USER = 16
    INVALID_REQUEST = 17
    OUTACCOUNT_EXIST = 18
    TARGET_ACTIVE = 19
    LUN_ACTIVE = 20
    DRIVER_ACTIVE = 21
    UNSUPPORTED_OPERATION = 22
    UNKNOWN_PARAM = 23
    PREVENT_REMOVAL = 24


class TgtError(HostError):
    """The daemon refused a request; `errno` is its error number."""

    def __init__(self, what: str, number: int) -> None:
        self.errno = number
        name = Errno(number).name if number in Errno.__members__.values() else f"error {number}"
        super().__init__(f"tgtd refused to {what}: {name}", remedy="Its log is in the run directory, tgtd/tgtd.log.")


@dataclass(frozen=True, slots=True)
class Target:
    """One target as the daemon describes it. `accounts` and `initiators` are in the order of binding."""

    tid: int
    name: str
    luns: dict[int, str] = field(default_factory=dict)
    accounts: tuple[str, ...] = ()
    initiators: tuple[str, ...] = ()


class TgtSocket:
    """One daemon's control socket; a method for each request. No state, no lock: the caller orders the requests."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def peer(self) -> int | None:
        """Return the daemon's process id, as the kernel knows it; None if nobody listens, or it is about to end."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            connection: socket.socket = writer.get_extra_info("socket")
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            # The request only makes the daemon close the connection. A daemon that is stuck still runs.
            with contextlib.suppress(TimeoutError):
                async with time_limit(ANSWER_TIMEOUT):
                    await _ask(reader, writer, _record(Mode.PORTAL, Op.SHOW))
            pid: int = struct.unpack("3i", credentials)[0]
            return pid
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        finally:
            await _close(writer)

    async def request(
        self, what: str, mode: Mode, op: Op, parameters: str = "", *, tid: int = 0, sid: int = 0, lun: int = 0,
        cid: int = 0, force: bool = False,
    ) -> str:  # fmt: skip
        """Send one request, return the answer's text. `what` completes "tgtd refused to …" and holds no secret.

        Raises TgtError; UnavailableError if the daemon is dead or does not answer.
        """
        body = parameters.encode() + b"\0" if parameters else b""
        if len(body) > MOST_PARAMETERS:
            raise ValueError(f"{len(body)} bytes of parameters are more than tgtd takes")
        record = _record(mode, op, len(body), tid=tid, sid=sid, lun=lun, cid=cid, force=force)
        try:
            async with time_limit(ANSWER_TIMEOUT):
                number, text = await self._exchange(record + body)
        except (OSError, asyncio.IncompleteReadError) as error:
            # TimeoutError is an OSError too.
            reason = "did not answer" if isinstance(error, TimeoutError) else "is not running"
            raise UnavailableError(
                f"tgtd {reason} when asked to {what}", field="socket", value=self.path, remedy="The agent restarts it."
            ) from error
        if number:
            raise TgtError(what, number)
        return text

    async def _exchange(self, message: bytes) -> tuple[int, str]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            return await _ask(reader, writer, message)
        finally:
            await _close(writer)

    async def new_target(self, tid: int, name: str) -> None:
        """Create a target that nobody may use yet."""
        await self.request(f"create target {tid}", Mode.TARGET, Op.NEW, f"targetname={name}", tid=tid)

    async def delete_target(self, tid: int) -> None:
        """Delete a target with its units, accounts' bindings and sessions; LUN_ACTIVE while commands are in flight."""
        await self.request(f"delete target {tid}", Mode.TARGET, Op.DELETE, tid=tid, force=True)

    async def new_lun(self, tid: int, lun: int, path: Path, serial: str) -> None:
        """Put a file or block device behind a target, with a serial number of its own and discard allowed."""
        what = f"export {path}"
        await self.request(what, Mode.DEVICE, Op.NEW, f"path={path},bstype=rdwr", tid=tid, lun=lun)
        settings = f"targetOps scsi_id={serial},scsi_sn={serial},thin_provisioning=1,"
        await self.request(what, Mode.DEVICE, Op.UPDATE, settings, tid=tid, lun=lun)

    async def reopen_lun(self, tid: int, lun: int, path: Path) -> None:
        """Make the daemon see a file's new size; commands that arrive in between fail."""
        for settings in ("online=0", f"path={path}", "online=1"):
            await self.request(f"resize {path}", Mode.DEVICE, Op.UPDATE, f"targetOps {settings},", tid=tid, lun=lun)

    async def new_account(self, user: str, password: str) -> None:
        await self.request(f"create account {user}", Mode.ACCOUNT, Op.NEW, f"user={user},password={password}")

    async def delete_account(self, user: str) -> None:
        """Delete a CHAP account that is bound nowhere (see the module's traps)."""
        await self.request(f"delete account {user}", Mode.ACCOUNT, Op.DELETE, f"user={user}")

    async def bind_account(self, tid: int, user: str) -> None:
        """Let a target take logins with this account."""
        await self.request(f"bind account {user}", Mode.ACCOUNT, Op.BIND, f"user={user}", tid=tid)

    async def unbind_account(self, tid: int, user: str) -> None:
        """Undo `bind_account`; only ever the one bound last."""
        await self.request(f"unbind account {user}", Mode.ACCOUNT, Op.UNBIND, f"user={user}", tid=tid)

    async def accounts(self) -> list[str]:
        text = await self.request("show accounts", Mode.ACCOUNT, Op.SHOW, tid=-1)
        return [line.strip() for line in text.splitlines()[1:] if line.strip()]

    async def bind_initiator(self, tid: int, name: str) -> None:
        """Let logins with this initiator name through to the account check."""
        await self.request(f"admit {name}", Mode.TARGET, Op.BIND, f"initiator-name={name}", tid=tid)

    async def unbind_initiator(self, tid: int, name: str) -> None:
        """Refuse new logins with this initiator name."""
        await self.request(f"refuse {name}", Mode.TARGET, Op.UNBIND, f"initiator-name={name}", tid=tid)

    async def sessions(self, tid: int) -> list[Session]:
        """Return a target's sessions. One whose commands are still in flight is listed until they are over."""
        return parse_sessions(await self.request("show connections", Mode.CONNECTION, Op.SHOW, tid=tid))

    async def close_connection(self, tid: int, sid: int, cid: int) -> None:
        """End one connection of a session; one that is gone is no error."""
        try:
            await self.request("close a connection", Mode.CONNECTION, Op.DELETE, tid=tid, sid=sid, cid=cid)
        except TgtError as error:
            if error.errno not in (Errno.NO_SESSION, Errno.NO_CONNECTION):
                raise

    async def connections(self) -> int:
        """Count the connections of all sessions of all targets."""
        return len(re.findall(r"(?m)^ {12}Connection: ", await self._show_targets()))

    async def targets(self) -> list[Target]:
        return parse_targets(await self._show_targets())

    async def _show_targets(self) -> str:
        return await self.request("show targets", Mode.TARGET, Op.SHOW, tid=-1)

    async def portals(self) -> list[str]:
        """Return where the daemon listens, as `address:port`."""
        text = await self.request("show portals", Mode.PORTAL, Op.SHOW)
        return [
            line.removeprefix("Portal: ").split(",")[0] for line in text.splitlines() if line.startswith("Portal: ")
        ]

    async def new_portal(self, portal: str) -> None:
        """Listen on one more `address:port`."""
        await self.request(f"listen on {portal}", Mode.PORTAL, Op.NEW, f"portalOps portal={portal},")

    async def delete_portal(self, portal: str) -> None:
        """Stop listening on one `address:port`."""
        await self.request(f"stop listening on {portal}", Mode.PORTAL, Op.DELETE, f"portalOps portal={portal},")

    async def shut_down(self) -> None:
        """Ask the daemon to end; it does so only without targets."""
        await self.request("end", Mode.SYSTEM, Op.DELETE)


def parse_targets(text: str) -> list[Target]:
    """Read the daemon's list of targets: indented sections whose titles end with a colon."""
    targets: list[Target] = []
    for block in re.split(r"(?m)^(?=Target \d+: )", text):
        if not (head := re.match(r"Target (\d+): (\S+)", block)):
            continue
        luns = {
            int(number): path
            for number, path in re.findall(r"(?s)LUN: (\d+)\n.*?Backing store path: ([^\n]*)\n", block)
            if path != "None"
        }
        targets.append(
            Target(
                int(head[1]), head[2], luns, _section(block, "Account information"), _section(block, "ACL information")
            )
        )
    return targets


def parse_sessions(text: str) -> list[Session]:
    """Read the daemon's list of a target's connections; connections of one session follow one another."""
    found: dict[int, Session] = {}
    pattern = r"Session: (\d+)\n\s+Connection: (\d+)\n\s+Initiator: ([^\n]*)\n[ ]*(?:IP Address: )?([^\n]*)"
    for sid, cid, initiator, address in re.findall(pattern, text):
        known = found.get(int(sid), Session(initiator, int(sid), (), address))
        found[int(sid)] = Session(initiator, int(sid), (*known.connection_ids, int(cid)), address)
    return list(found.values())


def _section(block: str, title: str) -> tuple[str, ...]:
    found = re.search(rf"(?m)^    {title}:\n((?: {{8}}[^\n]*\n?)*)", block)
    return tuple(found[1].split()) if found else ()


def _record(
    mode: Mode, op: Op, body: int = 0, *, tid: int = 0, sid: int = 0, lun: int = 0, cid: int = 0, force: bool = False
) -> bytes:
    """The fixed part of a request with so many bytes of parameters."""
    return REQUEST.pack(mode, op, DRIVER, REQUEST.size + body, tid, sid, lun, cid, 0, 0, 0, 0, int(force))


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> tuple[int, str]:
    writer.write(message)
    await writer.drain()
    number, length = RESPONSE.unpack(await reader.readexactly(RESPONSE.size))
    text = await reader.readexactly(max(0, length - RESPONSE.size))
    return number, text.rstrip(b"\0").decode(errors="replace")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
