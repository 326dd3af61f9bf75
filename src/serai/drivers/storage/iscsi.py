"""Volumes over iSCSI: one `tgtd` for each host, one target for each volume, one CHAP account for each admission.

The record (export_records.py) says how it should be, and tgt_targets.py makes the daemon so. Every operation writes the
record first and converges then; what is left of an operation that was cut short is done by the next `check` or `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from ipaddress import ip_address
from pathlib import Path

from serai.drivers.storage.base import (
    Export,
    Session,
    check_admission,
    check_volume_id,
    not_exported,
)
from serai.drivers.storage.export_records import ExportRecord, ExportRecords
from serai.drivers.storage.tgt_daemon import TgtDaemon
from serai.drivers.storage.tgt_targets import LUN, TgtTargets, target_name
from serai.lib.paths import HostPaths
from serai.schema.errors import ConflictError, HostError, InvalidError, UnavailableError
from serai.schema.ids import HostName, VmId
from serai.schema.launch import Admission

log = logging.getLogger(__name__)

PORT = 3260
"""What iSCSI is registered under."""


class TgtExporter:
    """The exporter of one host, which listens on `address` (its storage link) alone."""

    def __init__(self, paths: HostPaths, address: str, port: int = PORT) -> None:
        self._daemon = TgtDaemon(paths.tgtd, ip_address(address), port)
        self._socket = self._daemon.socket
        self._records = ExportRecords(paths.state / "exports.json")
        self._targets = TgtTargets(self._daemon, self._records)
        self._lock = asyncio.Lock()
        self._started = False

    @property
    def portal(self) -> str:
        """Where initiators find the volumes: `address:port`."""
        return self._daemon.portal

    async def start(self) -> None:
        """Start `tgtd`, or take over the one that runs, and make it match the record; the second time, like `check`."""
        async with self._lock:
            if self._started:
                await self._check()
                return
            await asyncio.to_thread(self._records.load)
            if await self._daemon.running():
                await self._daemon.listen_only_here()
                await self._targets.forget_accounts()
                await self._targets.converge_all()
            else:
                await self._start()
            self._started = True

    async def check(self) -> bool:
        """Start `tgtd` again if it died, and repair any difference from the record; True if it had died.

        Raises UnavailableError if it lives but does not answer.
        """
        async with self._lock:
            return await self._check()

    async def _check(self) -> bool:
        if await self._revive():
            return True
        try:
            await self._targets.converge_all()
        except UnavailableError:
            # Its socket takes connections until the very end of a process that is being killed.
            if not await self._daemon.ended():
                raise
            return await self._revive()
        return False

    async def stop(self) -> None:
        async with self._lock:
            self._started = False
            if await self._daemon.running():
                with contextlib.suppress(UnavailableError):
                    await self._targets.clear()
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
                record = ExportRecord(volume=volume_id, tid=self._records.next_tid(), path=path)
                await self._export_new(record)
            else:
                await self._targets.converge(record, await self._targets.target(record.tid))
            return Export(target_name(record), LUN)

    async def _export_new(self, record: ExportRecord) -> None:
        await asyncio.to_thread(self._records.put, record)
        try:
            await self._targets.converge(record, await self._targets.target(record.tid))
        except BaseException:
            await asyncio.to_thread(self._records.drop, record.volume)
            with contextlib.suppress(HostError, UnavailableError):
                await self._targets.delete(record.tid)
            raise

    async def unexport(self, volume_id: str) -> None:
        check_volume_id(volume_id)
        async with self._lock:
            await self._revive()
            record = self._records.get(volume_id)
            if record is None:
                return
            await asyncio.to_thread(self._records.drop, volume_id)
            await self._targets.delete(record.tid)
            await self._targets.drop_unused_accounts()

    async def admit(self, volume_id: str, admission: Admission) -> None:
        """Let an initiator in. ConflictError for a user who has another secret elsewhere: accounts are global."""
        check_volume_id(volume_id)
        check_admission(admission)
        async with self._lock:
            await self._revive()
            record = self._record(volume_id).admitting(admission)
            self._check_secrets(record)
            await asyncio.to_thread(self._records.put, record)
            await self._targets.converge(record, await self._targets.target(record.tid))

    async def refuse(self, volume_id: str, vm: VmId, epoch: int, host: HostName | None = None) -> None:
        """Fence epochs, admitted or not: also a session that has no right to be there is closed."""
        check_volume_id(volume_id)
        async with self._lock:
            await self._revive()
            record = self._record(volume_id).refusing(vm, epoch, host)
            await asyncio.to_thread(self._records.put, record)
            await self._targets.converge(record, await self._targets.target(record.tid))

    async def sessions(self, volume_id: str) -> list[Session]:
        return await self._socket.sessions(self._record(check_volume_id(volume_id)).tid)

    async def grow(self, volume_id: str) -> None:
        """Let initiators see the volume's new size; they must ask for it (QEMU: block_resize)."""
        async with self._lock:
            await self._revive()
            record = self._record(check_volume_id(volume_id))
            await self._socket.reopen_lun(record.tid, LUN, record.path)

    def _record(self, volume_id: str) -> ExportRecord:
        record = self._records.get(volume_id)
        if record is None:
            raise not_exported(volume_id)
        return record

    def _check_secrets(self, record: ExportRecord) -> None:
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
        self._targets.forget()
        await self._daemon.start()
        await self._targets.converge_all()


def _check_path(path: Path) -> None:
    """Refuse a path that the daemon's parameters cannot carry."""
    if not path.is_absolute() or any(letter in str(path) for letter in ",\n\0") or len(str(path)) > 900:
        raise InvalidError(
            "a volume's path is absolute, without comma, and at most 900 characters long",
            field="path",
            value=path,
            remedy="Move the pool to a plainer path.",
        )
