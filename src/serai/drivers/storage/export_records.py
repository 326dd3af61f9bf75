"""The persistent record of exports: the exported volumes, their target numbers, and the initiators admitted to each.

The file is the only truth about exports that outlives the target's process and the host's power. It holds CHAP secrets,
so it belongs to root alone; it is replaced whole and durably before the target hears of a change, so that whatever
crashes, making the target match the file again never admits an initiator that was already refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from serai.lib.atomicfile import write_text
from serai.schema.encoding import to_dict
from serai.schema.errors import HostError
from serai.schema.launch import Admission

VERSION = 1


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """One exported volume. `tid` is its target's number in the daemon."""

    volume: str
    tid: int
    path: Path
    admissions: tuple[Admission, ...] = ()

    def admission(self, initiator: str) -> Admission | None:
        """Return an initiator's admission, if it has one."""
        return next((admission for admission in self.admissions if admission.initiator == initiator), None)

    def admitting(self, admission: Admission) -> ExportRecord:
        """Return the record with this admission in place of any of the same initiator."""
        return replace(self, admissions=(*self.refusing(admission.initiator).admissions, admission))

    def refusing(self, initiator: str) -> ExportRecord:
        """Return the record without this initiator."""
        return replace(self, admissions=tuple(a for a in self.admissions if a.initiator != initiator))

    @property
    def secrets(self) -> dict[str, str]:
        """User to CHAP secret, in order of admission."""
        return {admission.user: admission.password.get_secret_value() for admission in self.admissions}


class ExportRecords:
    """All exports of a host, by volume; every change is on disk when the method returns. Blocking."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._records: dict[str, ExportRecord] = {}
        self._last_tid = 0

    def load(self) -> None:
        """Read the file; none means no exports. Raises HostError for one that cannot be understood."""
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            self._records, self._last_tid = {}, 0
            return
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise ValueError(f"version {document['version']}")
            self._records = {entry["volume"]: _read(entry) for entry in document["exports"]}
            self._last_tid = int(document["last_tid"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            # Only the type of the error: its text could hold a secret.
            raise HostError(
                f"the record of exports cannot be read ({type(error).__name__})",
                field="file",
                value=self._file,
                remedy="Move the file away; the controller exports and admits again what it needs.",
            ) from None

    def all(self) -> list[ExportRecord]:
        """Return all records, by target number."""
        return sorted(self._records.values(), key=lambda record: record.tid)

    def get(self, volume: str) -> ExportRecord | None:
        """Return one volume's record."""
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
        """Forget a volume."""
        self._save({key: record for key, record in self._records.items() if key != volume})

    def _save(self, records: dict[str, ExportRecord]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._file, json.dumps(_document(records.values(), self._last_tid), indent=1) + "\n", mode=0o600)
        self._records = records


def _document(records: Iterable[ExportRecord], last_tid: int) -> dict[str, object]:
    return {
        "version": VERSION,
        "last_tid": last_tid,
        "exports": [
            {
                "volume": record.volume,
                "tid": record.tid,
                "path": str(record.path),
                "admissions": [to_dict(admission) for admission in record.admissions],
            }
            for record in records
        ],
    }


def _read(entry: dict[str, object]) -> ExportRecord:
    admissions = entry["admissions"]
    if not isinstance(admissions, list):
        raise TypeError("admissions are a list")
    return ExportRecord(
        volume=str(entry["volume"]),
        tid=int(str(entry["tid"])),
        path=Path(str(entry["path"])),
        admissions=tuple(Admission.model_validate(admission) for admission in admissions),
    )
