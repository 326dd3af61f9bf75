"""Volumes over iSCSI: one `tgtd` for each host, one target for each volume, one CHAP account for each admission.

The record (export_records.py) says how it should be; `_converge` makes one target so, from whatever it is, in an order
in which no step lets in anyone who should be out: refusals first, then accounts, then admissions, and at last the
sessions that have no right to be there are closed. Every operation is "write the record, converge", and so is recovery.

A fence is complete when `refuse` returns: the name and the account are gone, the sessions are closed, and the commands
that were in flight are over. A session whose end hangs (a frozen initiator with a full socket) costs its target: it is
torn down and rebuilt, and the admitted initiators log in again by themselves.

Each target is bound to a guard account whose secret nobody knows: without any account the daemon asks for none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Collection
from ipaddress import ip_address
from pathlib import Path

from serai.drivers.storage.base import (
    Export,
    Session,
    check_admission,
    check_initiator,
    check_volume_id,
    not_exported,
)
from serai.drivers.storage.export_records import Record, Records
from serai.drivers.storage.tgt_daemon import TgtDaemon
from serai.drivers.storage.tgt_socket import Errno, Target, TgtError
from serai.lib.paths import HostPaths
from serai.schema.attach import Admission
from serai.schema.errors import ConflictError, HostError, InvalidError, UnavailableError

log = logging.getLogger(__name__)

TARGET_PREFIX = "iqn.2026-01.io.serai:vol."
LUN = 1
"""The volume's unit; unit 0 of every target is the controller that the daemon adds."""

PORT = 3260
GUARD = "serai-guard"

DRAIN_TIMEOUT = 3.0
"""Seconds that closed sessions may take to end before the target is rebuilt without them."""

SETTLE_TIMEOUT = 1.0
"""Seconds to wait for logins that are under way while someone is refused; a login takes milliseconds."""

DELETE_TIMEOUT = 30.0
"""Seconds to wait for commands in flight when a target is deleted: a slow disk is slow, a dead one is reported."""


class TgtExporter:
    """The exporter of one host, which listens on `address` (its storage link) alone."""

    def __init__(self, paths: HostPaths, address: str, port: int = PORT) -> None:
        self._daemon = TgtDaemon(paths.tgtd, ip_address(address), port)
        self._socket = self._daemon.socket
        self._records = Records(paths.state / "exports.json")
        self._accounts: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._started = False

    @property
    def portal(self) -> str:
        """Where initiators find the volumes: `address:port`."""
        return self._daemon.portal

    async def start(self) -> None:
        """Start `tgtd`, or take over the one that runs, and make it match the record."""
        async with self._lock:
            await asyncio.to_thread(self._records.load)
            self._started = True
            if await self._daemon.running():
                await self._daemon.listen_only_here()
                await self._forget_accounts()
                await self._converge_all()
            else:
                await self._start()

    async def check(self) -> bool:
        """Start `tgtd` again if it died, and repair any difference from the record; True if it had died.

        Raises UnavailableError if it lives but does not answer.
        """
        async with self._lock:
            if await self._revive():
                return True
            try:
                await self._converge_all()
            except UnavailableError:
                # Its socket takes connections until the very end of a process that is being killed.
                if not await self._daemon.ended():
                    raise
                return await self._revive()
            return False

    async def stop(self) -> None:
        """End `tgtd` and all sessions. The record stays."""
        async with self._lock:
            self._started = False
            if await self._daemon.running():
                with contextlib.suppress(UnavailableError):
                    for target in await self._socket.targets():
                        await self._delete_target(target.tid)
                await self._daemon.stop()

    async def export(self, volume_id: str, path: Path) -> Export:
        """Offer a volume's file or block device; a volume offered from another path before is a ConflictError."""
        check_volume_id(volume_id)
        _check_path(path)
        async with self._lock:
            await self._revive()
            record = self._records.get(volume_id)
            if record is not None and record.path != path:
                raise ConflictError(
                    "the volume is exported from another path",
                    field="path",
                    value=path,
                    remedy=f"Unexport it first; it is {record.path} now.",
                )
            if record is None:
                record = Record(volume_id, self._records.free_tid(), path)
                await self._export_new(record)
            else:
                await self._converge(record, await self._target(record.tid))
            return Export(_name(record), LUN)

    async def _export_new(self, record: Record) -> None:
        await asyncio.to_thread(self._records.put, record)
        try:
            await self._converge(record, await self._target(record.tid))
        except BaseException:
            await asyncio.to_thread(self._records.drop, record.volume)
            with contextlib.suppress(HostError, UnavailableError):
                await self._delete_target(record.tid)
            raise

    async def unexport(self, volume_id: str) -> None:
        """End the offer by force."""
        check_volume_id(volume_id)
        async with self._lock:
            await self._revive()
            record = self._records.get(volume_id)
            if record is None:
                return
            await asyncio.to_thread(self._records.drop, volume_id)
            if (target := await self._target(record.tid)) is not None:
                for initiator in target.initiators:
                    await self._socket.unbind_initiator(record.tid, initiator)
                await self._delete_target(record.tid)
            await self._drop_unused_accounts()

    async def admit(self, volume_id: str, admission: Admission) -> None:
        """Let an initiator in. ConflictError for a user who has another secret elsewhere: accounts are global."""
        check_volume_id(volume_id)
        check_admission(admission)
        async with self._lock:
            await self._revive()
            record = self._record(volume_id).admitting(admission)
            self._check_secrets(record)
            await asyncio.to_thread(self._records.put, record)
            await self._converge(record, await self._target(record.tid))

    async def refuse(self, volume_id: str, initiator_iqn: str) -> None:
        """Fence an initiator, admitted or not: also a session that has no right to be there is closed."""
        check_volume_id(volume_id)
        check_initiator(initiator_iqn)
        async with self._lock:
            await self._revive()
            record = self._record(volume_id).refusing(initiator_iqn)
            await asyncio.to_thread(self._records.put, record)
            await self._converge(record, await self._target(record.tid))

    async def sessions(self, volume_id: str) -> list[Session]:
        """Return who is connected to a volume now."""
        return await self._socket.sessions(self._record(check_volume_id(volume_id)).tid)

    def admissions(self, volume_id: str) -> list[Admission]:
        """Return who is admitted to a volume, by the record."""
        return list(self._record(check_volume_id(volume_id)).admissions)

    async def grow(self, volume_id: str) -> None:
        """Let initiators see the volume's new size; they must ask for it (QEMU: block_resize)."""
        async with self._lock:
            await self._revive()
            record = self._record(check_volume_id(volume_id))
            await self._socket.reopen_lun(record.tid, LUN, record.path)

    def _record(self, volume_id: str) -> Record:
        record = self._records.get(volume_id)
        if record is None:
            raise not_exported(volume_id)
        return record

    def _check_secrets(self, record: Record) -> None:
        own = [admission.user for admission in record.admissions]
        for other in self._records.all():
            for user, secret in other.secrets.items():
                if other.volume != record.volume and record.secrets.get(user, secret) != secret:
                    raise ConflictError(
                        "the CHAP user has another secret on another volume",
                        field="user",
                        value=user,
                        remedy="Use a user name of its own for each secret.",
                    )
        if len(set(own)) != len(own):
            raise ConflictError(
                "the CHAP user belongs to another initiator of this volume",
                field="user",
                value=next(user for user in own if own.count(user) > 1),
                remedy="Use a user name of its own for each initiator.",
            )

    async def _revive(self) -> bool:
        """Start the daemon again if it is dead, and say whether it was."""
        if not self._started:
            raise UnavailableError("the exporter was not started", field="portal", value=self.portal)
        if await self._daemon.running():
            return False
        log.warning("tgtd is dead: starting it again with %d exports", len(self._records.all()))
        await self._start()
        return True

    async def _start(self) -> None:
        self._accounts = {}
        await self._daemon.start()
        await self._converge_all()

    async def _forget_accounts(self) -> None:
        """After taking over a daemon: its secrets cannot be read, so every account is made anew.

        Live sessions are not touched; a login in these milliseconds fails, and initiators try again by themselves.
        """
        self._accounts = {}
        for target in await self._socket.targets():
            for user in reversed(target.accounts):
                await self._socket.unbind_account(target.tid, user)
        for user in await self._socket.accounts():
            await self._socket.delete_account(user)

    async def _converge_all(self) -> None:
        """Make the daemon match the record. An export that fails (its file is gone) does not keep the others out."""
        wanted = {record.tid: record for record in self._records.all()}
        present = {target.tid: target for target in await self._socket.targets()}
        for tid in present.keys() - wanted.keys():
            await self._delete_target(tid)
        for tid, record in wanted.items():
            try:
                await self._converge(record, present.get(tid))
            except TgtError as error:
                log.error("volume %s cannot be exported: %s", record.volume, error)

    async def _target(self, tid: int) -> Target | None:
        return next((target for target in await self._socket.targets() if target.tid == tid), None)

    async def _converge(self, record: Record, target: Target | None) -> None:
        """Make one target match its record; see the module's theory for the order."""
        tid = record.tid
        if target is not None and (target.name != _name(record) or target.luns != {LUN: str(record.path)}):
            await self._delete_target(tid)
            target = None
        if target is None:
            target = await self._new_target(record)
        admitted = {admission.initiator for admission in record.admissions}
        refused = [initiator for initiator in target.initiators if initiator not in admitted]
        for initiator in refused:
            await self._socket.unbind_initiator(tid, initiator)
        await self._set_accounts(record, target)
        for initiator in sorted(admitted - set(target.initiators)):
            await self._socket.bind_initiator(tid, initiator)
        if not await self._drained(tid, admitted, settle=bool(refused)):
            log.warning("volume %s: a refused session does not end: rebuilding its target", record.volume)
            await self._delete_target(tid)
            await self._converge(record, None)
        await self._drop_unused_accounts()

    async def _new_target(self, record: Record) -> Target:
        """Create a target with its volume and guard, open to nobody."""
        await self._socket.new_target(record.tid, _name(record))
        try:
            await self._socket.new_lun(record.tid, LUN, record.path, record.volume)
        except TgtError as error:
            await self._socket.delete_target(record.tid)
            if error.errno != Errno.INVALID_REQUEST:
                raise
            raise TgtError(f"open {record.path}, which is missing or unreadable", error.errno) from error
        return Target(record.tid, _name(record), {LUN: str(record.path)})

    async def _set_accounts(self, record: Record, target: Target) -> None:
        """Bind exactly the guard and the record's users, in that order, unbinding from the end (tgt_socket's traps)."""
        wanted = {GUARD: self._accounts.get(GUARD) or secrets.token_hex(16), **record.secrets}
        keep = 0
        for have, want in zip(target.accounts, wanted, strict=False):
            if have != want or self._accounts.get(want) != wanted[want]:
                break
            keep += 1
        for user in reversed(target.accounts[keep:]):
            await self._socket.unbind_account(record.tid, user)
        for user in list(wanted)[keep:]:
            await self._make_account(user, wanted[user])
            await self._socket.bind_account(record.tid, user)

    async def _make_account(self, user: str, secret: str) -> None:
        if self._accounts.get(user) == secret:
            return
        if self._accounts.pop(user, None) is not None:
            await self._socket.delete_account(user)
        await self._socket.new_account(user, secret)
        self._accounts[user] = secret

    async def _drop_unused_accounts(self) -> None:
        used = {GUARD}.union(*(record.secrets for record in self._records.all()))
        for user in self._accounts.keys() - used:
            await self._socket.delete_account(user)
            del self._accounts[user]

    async def _drained(self, tid: int, admitted: Collection[str], *, settle: bool) -> bool:
        """Close the sessions of all who are not admitted; False if they are not over within DRAIN_TIMEOUT.

        With `settle`, logins that are under way are waited for as well, since one that passed the checks before its
        initiator was refused becomes a session after; but not longer than SETTLE_TIMEOUT, as a connection may idle.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + SETTLE_TIMEOUT
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                async for _ in _patiently():
                    under_way = settle and clock() < until and await self._daemon.logins_under_way()
                    strangers = [s for s in await self._socket.sessions(tid) if s.initiator not in admitted]
                    if not strangers and not under_way:
                        return True
                    for session in strangers:
                        for connection in session.connection_ids:
                            await self._socket.close_connection(tid, session.session_id, connection)
        return False

    async def _delete_target(self, tid: int) -> None:
        """Delete a target with all its sessions, once the commands in flight are over."""
        try:
            async with asyncio.timeout(DELETE_TIMEOUT):
                async for _ in _patiently():
                    try:
                        await self._socket.delete_target(tid)
                        return
                    except TgtError as error:
                        if error.errno == Errno.NO_TARGET:
                            return
                        if error.errno != Errno.LUN_ACTIVE:
                            raise
        except TimeoutError:
            raise UnavailableError(
                "commands in flight on the volume do not end",
                field="target",
                value=tid,
                remedy="Look at the disk below the pool (dmesg); restart the host if it hangs.",
            ) from None


async def _patiently() -> AsyncIterator[None]:
    """Yield at once, then after pauses that grow from 2 to 100 ms: most waits here are over in the first."""
    pause = 0.002
    while True:
        yield
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _name(record: Record) -> str:
    return TARGET_PREFIX + record.volume


def _check_path(path: Path) -> None:
    """Refuse a path that the daemon's parameters cannot carry."""
    if not path.is_absolute() or any(letter in str(path) for letter in ",\n\0") or len(str(path)) > 900:
        raise InvalidError(
            "a volume's path is absolute, without comma, and at most 900 characters long",
            field="path",
            value=path,
            remedy="Move the pool to a plainer path.",
        )
