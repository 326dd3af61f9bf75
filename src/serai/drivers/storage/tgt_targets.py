"""The targets of one `tgtd`, made to match the record of exports.

`converge` makes one target as its record says, from whatever it is, in an order in which no step lets in anyone who
should be out: refusals first, then accounts, then admissions, and at last the sessions that have no right to be there
are closed. There is nothing else that changes a daemon, so recovery is the same as work.

A refusal is complete when `converge` returns: the name and the account are gone, the sessions are closed, the commands
that were in flight are over, and no login that had passed the checks before can still end in a session. A frozen
initiator's full socket is cut; one that froze in the middle of its login costs the target, which is torn down and
rebuilt under a new number, to which no old login leads, while the admitted initiators log in again by themselves.

Each target is bound to a guard account whose secret nobody knows: without any account the daemon asks for none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Collection

from serai.drivers.storage.export_records import ExportRecord, ExportRecords
from serai.drivers.storage.tgt_daemon import TgtDaemon
from serai.drivers.storage.tgt_socket import Errno, Target, TgtError
from serai.lib.timeouts import time_limit
from serai.schema.errors import UnavailableError

log = logging.getLogger(__name__)

TARGET_PREFIX = "iqn.2026-01.io.serai:vol."
LUN = 1
"""The volume's unit; unit 0 of every target is the controller that the daemon adds."""

GUARD = "serai-guard"

DRAIN_TIMEOUT = 2.0
"""Seconds that closed sessions may take to end, and logins to come to theirs, before the target is rebuilt without
them. Both take milliseconds."""

DELETE_TIMEOUT = 30.0
"""Seconds to wait for commands in flight when a target is deleted: a slow disk is slow, a dead one is reported."""


class TgtTargets:
    """The targets of a daemon that runs. No lock: the exporter lets one operation in at a time."""

    def __init__(self, daemon: TgtDaemon, records: ExportRecords) -> None:
        self._daemon = daemon
        self._socket = daemon.socket
        self._records = records
        self._accounts: dict[str, str] = {}
        """User to secret of the accounts that the daemon has."""

    def forget(self) -> None:
        """The daemon is a new one, without anything."""
        self._accounts = {}

    async def clear(self) -> None:
        for target in await self._socket.targets():
            await self.delete(target.tid)

    async def forget_accounts(self) -> None:
        """After taking over a daemon: its secrets cannot be read, so every account is created again.

        Live sessions are not touched; a login in these milliseconds fails, and initiators try again by themselves.
        """
        self._accounts = {}
        for target in await self._socket.targets():
            if target.accounts[:1] != (GUARD,):
                await self.delete(target.tid)
                continue
            for user in reversed(target.accounts[1:]):
                await self._socket.unbind_account(target.tid, user)
        for user in await self._socket.accounts():
            if user == GUARD:
                # It stays: in the moment without any account, a name would do. Nobody needs to know its secret.
                self._accounts[GUARD] = "unknown"
            else:
                await self._socket.delete_account(user)

    async def converge_all(self) -> None:
        """Make the daemon match the record. An export that fails (its file is gone) does not keep the others out."""
        wanted = {record.tid: record for record in self._records.all()}
        present = {target.tid: target for target in await self._socket.targets()}
        for tid in present.keys() - wanted.keys():
            await self.delete(tid)
        for tid, record in wanted.items():
            try:
                await self.converge(record, present.get(tid))
            except TgtError as error:
                log.error("volume %s cannot be exported: %s", record.volume, error)

    async def target(self, tid: int) -> Target | None:
        """Return one target as it is now; None if there is none."""
        return next((target for target in await self._socket.targets() if target.tid == tid), None)

    async def converge(self, record: ExportRecord, target: Target | None) -> None:
        """Make one target match its record; see the module's docstring for the order."""
        tid = record.tid
        if target is not None and (target.name != target_name(record) or target.luns != {LUN: str(record.path)}):
            await self.delete(tid)
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
            await self._rebuild(record)
        await self.drop_unused_accounts()

    async def _rebuild(self, record: ExportRecord) -> None:
        """Replace a target that a refused initiator does not leave."""
        log.warning("volume %s: a refused initiator does not go away: rebuilding its target", record.volume)
        await self.delete(record.tid)
        record = record.model_copy(update={"tid": self._records.next_tid()})
        await asyncio.to_thread(self._records.put, record)
        await self.converge(record, None)

    async def _new_target(self, record: ExportRecord) -> Target:
        """Create a target with its volume and guard, open to nobody."""
        await self._socket.new_target(record.tid, target_name(record))
        try:
            await self._socket.new_lun(record.tid, LUN, record.path, record.volume)
        except TgtError as error:
            await self._socket.delete_target(record.tid)
            if error.errno != Errno.INVALID_REQUEST:
                raise
            raise TgtError(f"open {record.path}, which is missing or unreadable", error.errno) from error
        return Target(record.tid, target_name(record), {LUN: str(record.path)})

    async def _set_accounts(self, record: ExportRecord, target: Target) -> None:
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

    async def drop_unused_accounts(self) -> None:
        used = {GUARD}.union(*(record.secrets for record in self._records.all()))
        for user in self._accounts.keys() - used:
            await self._socket.delete_account(user)
            del self._accounts[user]

    async def _drained(self, tid: int, admitted: Collection[str], *, settle: bool) -> bool:
        """Close the sessions of all who are not admitted; False if that is not over within DRAIN_TIMEOUT.

        With `settle`, logins that are under way are waited for as well, since one that passed the checks before its
        initiator was refused becomes a session after.
        """
        clock = asyncio.get_running_loop().time
        cut_at = clock() + DRAIN_TIMEOUT / 4
        with contextlib.suppress(TimeoutError):
            async with time_limit(DRAIN_TIMEOUT):
                async for _ in _patiently():
                    # In this order: a login that ends in between is seen as a session.
                    under_way = settle and await self._daemon.logins_under_way()
                    strangers = [s for s in await self._socket.sessions(tid) if s.initiator not in admitted]
                    if not strangers and not under_way:
                        return True
                    for session in strangers:
                        for connection in session.connection_ids:
                            await self._socket.close_connection(tid, session.session_id, connection)
                    if strangers and clock() > cut_at:
                        await self._daemon.cut({session.address for session in strangers})
        return False

    async def delete(self, tid: int) -> None:
        """Delete a target with all its sessions, once the commands in flight are over.

        The daemon deletes none with commands in flight, and a busy guest always has some: so all are sent away first.
        """
        target = await self.target(tid)
        if target is None:
            return
        for initiator in target.initiators:
            await self._socket.unbind_initiator(tid, initiator)
        await self._drained(tid, (), settle=False)
        try:
            async with time_limit(DELETE_TIMEOUT):
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


def target_name(record: ExportRecord) -> str:
    """The name under which initiators ask for the volume."""
    return TARGET_PREFIX + record.volume
