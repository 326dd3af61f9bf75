"""The contract of storage: a place for volumes, and their export to other hosts.

A `PoolDriver` keeps volumes: blocks of bytes named by 12 hexadecimal characters, nothing else. An `Exporter` offers
volumes over the network to initiators that were admitted by name and secret, one admission for each lease epoch; its
refusal is the fence that keeps an old holder of a VM from writing after the VM has moved on.

All sizes are in bytes. Every driver, the fake ones too, passes tests/contract/test_storage.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from serai.schema.errors import CapacityError, ConflictError, InvalidError, NotFoundError
from serai.schema.ids import HostName, VmId
from serai.schema.launch import Admission

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from the event loop's thread; never goes back."""

SECTOR = 512
"""Volumes are whole sectors: what a disk can address."""

_VOLUME_ID = re.compile(r"[0-9a-f]{12}")
_INITIATOR = re.compile(r"iqn\.[a-z0-9][a-z0-9.:-]{3,218}")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,254}")
_SECRET = re.compile(r"[A-Za-z0-9._+/=-]{12,64}")


class ImageFormat(StrEnum):
    """The formats that images come in."""

    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool's room in bytes."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """One volume: its size, and how much of it takes room."""

    id: str
    size: int
    allocated: int


@dataclass(frozen=True, slots=True)
class Export:
    """Under what name a volume is offered: an iSCSI qualified name and a logical unit number."""

    target_iqn: str
    lun: int


@dataclass(frozen=True, slots=True)
class Session:
    """One initiator that is connected to a volume now."""

    initiator: str
    session_id: int
    connection_ids: tuple[int, ...]
    address: str


class PoolDriver(Protocol):
    """A place for volumes on one host.

    Creation is atomic: a volume is listed once it is whole, and what a crash leaves is swept by `open`. Errors:
    InvalidError (a name or size that cannot be), NotFoundError, ConflictError (the id is taken), CapacityError (no
    room; nothing is left behind).
    """

    async def open(self, *, make: bool = True) -> None:
        """Make the pool ready, and sweep what a crash left half done. Safe to repeat.

        Without `make` the pool must be there from before: HostError if it is not, as where nothing is mounted.
        """

    async def places(self) -> frozenset[str]:
        """Names of where the pool is, however its path is written: pools that share one would share their volumes.

        It need not be open, nor there.
        """

    async def remove(self, *, keep: bool) -> None:
        """Take an empty pool's own place away; what is not the pool's stays. Safe to repeat.

        With `keep` the place stays, free for others.
        """

    async def status(self) -> PoolStatus:
        """Return the pool's room."""

    async def create_volume(self, volume_id: str, size: int) -> None:
        """Create an empty volume (all zeros)."""

    async def create_from_image(
        self, volume_id: str, image_file: Path, image_format: str, size: int, progress: Progress | None = None
    ) -> None:
        """Create a volume that starts with an image's content; `size` is at least the image's virtual size."""

    async def clone_volume(self, src_id: str, dst_id: str, progress: Progress | None = None) -> None:
        """Create a volume with the content and size of another."""

    async def delete_volume(self, volume_id: str) -> None:
        """Delete a volume; one that is not there is deleted already."""

    async def grow_volume(self, volume_id: str, size: int) -> None:
        """Make a volume larger; the same size changes nothing, a smaller one is refused."""

    async def list_volumes(self) -> list[VolumeInfo]:
        """Return the whole volumes, ordered by id."""

    def volume_path(self, volume_id: str) -> Path:
        """Return where the volume is (or would be) on this host."""


class Exporter(Protocol):
    """Offers volumes of this host to initiators on the storage network.

    What is exported and who is admitted is on record and survives a restart of the target and of its host. Errors:
    NotFoundError (the volume is not exported), InvalidError, ConflictError, UnavailableError (the target does not
    answer, or was not started).
    """

    async def start(self) -> None:
        """Start the target or take over the running one, and make it match the record. Safe to repeat."""

    async def check(self) -> bool:
        """Make the target match the record again; True if it was dead and had to be started."""

    async def stop(self) -> None:
        """End the target. The record stays: `start` brings all of it back."""

    async def export(self, volume_id: str, path: Path) -> Export:
        """Offer a volume; nobody is admitted to it yet. Safe to repeat."""

    async def unexport(self, volume_id: str) -> None:
        """End the offer and all its sessions; a volume that is not offered is no error."""

    async def admit(self, volume_id: str, admission: Admission) -> None:
        """Let an initiator in, by name and CHAP account; admitting it again with another secret replaces the first.

        An epoch is admitted for one host, and never again once it was refused: StaleError with the highest epoch of the
        VM that is known, unless this one is higher, or is admitted for this very host. It is a TakenError if this epoch
        or a later one is admitted for somebody.
        """

    async def refuse(self, volume_id: str, vm: VmId, epoch: int, host: HostName | None = None) -> None:
        """Fence a VM's epochs up to this one, admitted or not; with `host`, this one of that host alone.

        No new login, their sessions closed and their commands in flight over when this returns.
        """

    async def sessions(self, volume_id: str) -> list[Session]:
        """Return who is connected now."""

    async def grow(self, volume_id: str) -> None:
        """Take notice of the volume's new size. Commands that arrive meanwhile fail: quiesce the guest first."""


def check_volume_id(volume_id: str) -> str:
    """Return the id, or raise InvalidError: ids become file names, so nothing but 12 hex characters passes."""
    if not _VOLUME_ID.fullmatch(volume_id):
        raise InvalidError(
            "a volume id is 12 hexadecimal characters",
            field="volume",
            value=volume_id,
            remedy="Use the id that 'serai volume list' shows.",
        )
    return volume_id


def check_size(size: int) -> int:
    """Return the size, or raise InvalidError unless it is a positive number of whole sectors."""
    if size <= 0 or size % SECTOR:
        raise InvalidError(
            "a volume's size is a positive multiple of 512 bytes",
            field="size",
            value=size,
            remedy="Give a size such as 4G or 512M.",
        )
    return size


def check_admission(admission: Admission) -> Admission:
    """Return the admission, or raise InvalidError: its parts travel in a comma-separated string to the target."""
    check_initiator(admission.initiator)
    if not _USER.fullmatch(admission.user):
        raise InvalidError(
            "a CHAP user is up to 255 letters, digits and . : _ -",
            field="user",
            value=admission.user,
            remedy="Choose another name.",
        )
    if not _SECRET.fullmatch(admission.password.get_secret_value()):
        raise InvalidError(
            "a CHAP secret is 12 to 64 letters, digits and . _ + / = -",
            field="password",
            remedy="Let Serai make the secret.",
        )
    return admission


def check_initiator(initiator: str) -> str:
    """Return the initiator's name, or raise InvalidError unless it is an iSCSI qualified name."""
    if not _INITIATOR.fullmatch(initiator):
        raise InvalidError(
            "an initiator name is an iSCSI qualified name in small letters",
            field="initiator",
            value=initiator,
            remedy="Use a name such as iqn.2026-01.io.serai:vm.0123456789ab.1.",
        )
    return initiator


def no_volume(volume_id: str) -> NotFoundError:
    return NotFoundError(
        "there is no such volume in this pool",
        field="volume",
        value=volume_id,
        remedy="'serai volume list' shows those there are.",
    )


def not_exported(volume_id: str) -> NotFoundError:
    """The error for a volume that nobody can open over the network."""
    return NotFoundError(
        "the volume is not exported by this host", field="volume", value=volume_id, remedy="Export it first."
    )


def volume_exists(volume_id: str) -> ConflictError:
    return ConflictError(
        "a volume with this id is there already",
        field="volume",
        value=volume_id,
        remedy="Delete it, or choose another id.",
    )


def refuse_shrinking(size: int, current: int) -> InvalidError:
    """The error for a size smaller than what the volume (or the image for it) already has."""
    return InvalidError(
        f"the size would cut off data: {current} bytes are there",
        field="size",
        value=size,
        remedy=f"Give at least {current} bytes.",
    )


def no_room(size: int, free: int, where: object) -> CapacityError:
    """The error for a full pool; all in bytes."""
    return CapacityError(
        f"the pool at {where} has no room for it: {free} bytes are free",
        field="size",
        value=size,
        remedy="Delete volumes, grow the pool's file system, or use another pool.",
    )
