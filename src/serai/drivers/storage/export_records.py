"""The persistent record of exports: the exported volumes, their target numbers, and the initiators admitted to each.

It is a witness of leases, too: of each VM it keeps the highest epoch that it has heard of, which is never admitted for
another host. A controller that grants it again has an old database (ADR 7).

The file is the only truth about exports that outlives the target's process and the host's power. It holds CHAP secrets,
so it belongs to root alone; it is replaced whole and durably before the target hears of a change, so that whatever
crashes, making the target match the file again never admits an initiator that was already refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from serai.lib import atomicfile
from serai.schema.encoding import encode
from serai.schema.errors import HostError, StaleError, TakenError
from serai.schema.ids import HostName, VmId
from serai.schema.launch import Admission
from serai.schema.resource import Frozen


class ExportRecord(Frozen):
    """One exported volume. `tid` is its target's number in the daemon.

    `known` is, for each VM, the highest epoch that was admitted or refused.
    """

    volume: str
    tid: int
    path: Path
    admissions: tuple[Admission, ...] = ()
    known: Mapping[VmId, int] = Field(default_factory=dict)

    def admitting(self, admission: Admission) -> ExportRecord:
        """Return the record with this admission in place of the same host's for the same epoch.

        Raises StaleError for any other epoch that is not above all that are known of the VM.
        """
        vm, epoch = admission.vm, admission.epoch
        others = tuple(one for one in self.admissions if _right(one) != _right(admission))
        if len(others) == len(self.admissions) and epoch <= self.known.get(vm, 0):
            raise self._stale(admission)
        return self._knowing(vm, epoch, (*others, admission))

    def refusing(self, vm: VmId, epoch: int, host: HostName | None) -> ExportRecord:
        """Return the record without a VM's epochs up to this one; with `host` without this one of that host alone."""
        if host is None:
            stay = (one for one in self.admissions if one.vm != vm or one.epoch > epoch)
        else:
            stay = (one for one in self.admissions if _right(one) != (vm, epoch, host))
        return self._knowing(vm, epoch, tuple(stay))

    def _knowing(self, vm: VmId, epoch: int, admissions: tuple[Admission, ...]) -> ExportRecord:
        known = {**self.known, vm: max(epoch, self.known.get(vm, 0))}
        return self.model_copy(update={"admissions": admissions, "known": known})

    def _stale(self, admission: Admission) -> StaleError:
        vm, epoch, known = admission.vm, admission.epoch, self.known[admission.vm]
        later = [f"{one.epoch} for {one.host}" for one in self.admissions if one.vm == vm and one.epoch >= epoch]
        error, why = (TakenError, f"has admitted {', '.join(later)}") if later else (StaleError, f"knows epoch {known}")
        return error(
            f"epoch {epoch} of VM {vm} is over: the target of volume {self.volume} {why}",
            field="epoch",
            value=known,
            remedy="Start the VM again: it gets a later epoch, once the hosts have reported that may run it.",
        )

    @property
    def secrets(self) -> dict[str, str]:
        """User to CHAP secret, in order of admission."""
        return {admission.user: admission.password.get_secret_value() for admission in self.admissions}


def _right(admission: Admission) -> tuple[VmId, int, str]:
    return admission.vm, admission.epoch, admission.host


class _Document(Frozen):
    """The file. `last_tid` is the highest target number that was ever used."""

    version: Literal[1]
    last_tid: int
    exports: tuple[ExportRecord, ...]


class ExportRecords:
    """All exports of a host, by volume; every change is on disk when the method returns. Blocking."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._records: dict[str, ExportRecord] = {}
        self._last_tid = 0

    def load(self) -> None:
        """Read the file; none means no exports. Raises HostError for one that cannot be understood."""
        try:
            document = _Document.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            document = _Document(version=1, last_tid=0, exports=())
        except ValidationError as error:
            # Only the type of the error: its text could hold a secret.
            raise HostError(
                f"the record of exports cannot be read ({type(error).__name__})",
                field="file",
                value=self._file,
                remedy="Move the file away; the controller exports and admits again what it needs.",
            ) from None
        self._records = {record.volume: record for record in document.exports}
        self._last_tid = document.last_tid

    def all(self) -> list[ExportRecord]:
        """Return all records, by target number."""
        return sorted(self._records.values(), key=lambda record: record.tid)

    def get(self, volume: str) -> ExportRecord | None:
        return self._records.get(volume)

    def next_tid(self) -> int:
        """Return a target number that was never used: they begin at 1.

        A number that is used again would let a login that began with the old target end in the new one.
        """
        return self._last_tid + 1

    def put(self, record: ExportRecord) -> None:
        """Keep this record in place of the volume's old one."""
        self._last_tid = max(self._last_tid, record.tid)
        self._save({**self._records, record.volume: record})

    def drop(self, volume: str) -> None:
        self._save({key: record for key, record in self._records.items() if key != volume})

    def _save(self, records: dict[str, ExportRecord]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        document = _Document(version=1, last_tid=self._last_tid, exports=tuple(records.values()))
        atomicfile.write_bytes(self._file, encode(document), mode=0o600)
        self._records = records
