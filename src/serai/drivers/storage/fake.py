"""Storage in memory, for tests of what is above it: the same contract, errors included, and nothing of the machine.

`FakePool` knows contents as bytes; of a qcow2 image it knows only the size. `FakeExporter` has initiators of its own
(`login`, then `write`), so that a test can see who is fenced, and a target that can die (`crash`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from serai.drivers.storage.base import (
    Export,
    ImageFormat,
    PoolStatus,
    Progress,
    Session,
    VolumeInfo,
    check_admission,
    check_size,
    check_volume_id,
    no_room,
    no_volume,
    not_exported,
    refuse_shrinking,
    volume_exists,
)
from serai.drivers.storage.export_records import ExportRecord
from serai.schema.errors import ConflictError, InvalidError, NotFoundError, UnauthorizedError, UnavailableError
from serai.schema.ids import HostName, VmId
from serai.schema.launch import Admission


@dataclass
class _Volume:
    size: int
    content: bytes = b""


class FakePool:
    """A pool of `total` bytes in memory; contents count against them, zeros after them do not."""

    def __init__(self, total: int = 1 << 40, root: Path = Path("/fake/pool")) -> None:
        self._total = total
        self._root = root
        self._volumes: dict[str, _Volume] = {}

    async def open(self, *, make: bool = True) -> None:
        """Nothing to make ready."""

    async def places(self) -> frozenset[str]:
        return frozenset({str(id(self))})

    async def remove(self, *, keep: bool) -> None:
        """Nothing to take away."""

    async def status(self) -> PoolStatus:
        used = sum(len(volume.content) for volume in self._volumes.values())
        return PoolStatus(self._total, self._total - used)

    async def create_volume(self, volume_id: str, size: int) -> None:
        check_size(size)
        await self._add(volume_id, _Volume(size))

    async def create_from_image(
        self, volume_id: str, image_file: Path, image_format: str, size: int, progress: Progress | None = None
    ) -> None:
        check_size(size)
        content, virtual = _image(image_file, image_format)
        if virtual > size:
            raise refuse_shrinking(size, virtual)
        await self._add(volume_id, _Volume(size, content))
        if progress is not None:
            progress(virtual, virtual)

    async def clone_volume(self, src_id: str, dst_id: str, progress: Progress | None = None) -> None:
        source = self._get(src_id)
        await self._add(dst_id, _Volume(source.size, source.content))
        if progress is not None:
            progress(source.size, source.size)

    async def delete_volume(self, volume_id: str) -> None:
        self._volumes.pop(check_volume_id(volume_id), None)

    async def grow_volume(self, volume_id: str, size: int) -> None:
        check_size(size)
        volume = self._get(volume_id)
        if size < volume.size:
            raise refuse_shrinking(size, volume.size)
        free = (await self.status()).free
        if size - volume.size > free:
            raise no_room(size, free, self._root)
        volume.size = size

    async def list_volumes(self) -> list[VolumeInfo]:
        return [VolumeInfo(name, volume.size, len(volume.content)) for name, volume in sorted(self._volumes.items())]

    def volume_path(self, volume_id: str) -> Path:
        return self._root / f"{check_volume_id(volume_id)}.raw"

    def read(self, volume_id: str, offset: int, length: int) -> bytes:
        """Return what a guest would read there."""
        volume = self._get(volume_id)
        length = max(0, min(length, volume.size - offset))
        return volume.content[offset : offset + length].ljust(length, b"\0")

    def _get(self, volume_id: str) -> _Volume:
        volume = self._volumes.get(check_volume_id(volume_id))
        if volume is None:
            raise no_volume(volume_id)
        return volume

    async def _add(self, volume_id: str, volume: _Volume) -> None:
        if check_volume_id(volume_id) in self._volumes:
            raise volume_exists(volume_id)
        free = (await self.status()).free
        if max(volume.size if not volume.content else 0, len(volume.content)) > free:
            raise no_room(volume.size, free, self._root)
        self._volumes[volume_id] = volume


def _image(file: Path, image_format: str) -> tuple[bytes, int]:
    try:
        kind = ImageFormat(image_format)
    except ValueError:
        raise InvalidError(
            "images are raw or qcow2", field="format", value=image_format, remedy="Convert it."
        ) from None
    if not file.is_file():
        raise NotFoundError("there is no such image file", field="image", value=file, remedy="Import it first.")
    content = file.read_bytes()
    if kind is ImageFormat.RAW:
        return content, len(content) + -len(content) % 512
    if content[:4] != b"QFI\xfb":
        raise InvalidError("this is not a qcow2 image", field="image", value=file, remedy="Say its true format.")
    if content[8:16] != bytes(8):
        raise InvalidError(
            "the image takes its content from another file", field="image", value=file, remedy="Flatten it."
        )
    return b"", int.from_bytes(content[24:32])


@dataclass
class FakeSession:
    """An initiator's session with a fake target."""

    exporter: FakeExporter
    volume_id: str
    info: Session

    def write(self) -> None:
        """Write as a guest would; raises UnavailableError once the session was ended."""
        if self not in self.exporter.live:
            raise UnavailableError("the session was ended by the target", field="volume", value=self.volume_id)


class FakeExporter:
    """An exporter whose target and initiators are in memory."""

    portal = "192.0.2.1:3260"

    def __init__(self) -> None:
        self._offers: dict[str, ExportRecord] = {}
        self._numbers = itertools.count(1)
        self._started = False
        self._dead = False
        self.live: list[FakeSession] = []

    async def start(self) -> None:
        self._started, self._dead = True, False

    async def check(self) -> bool:
        if not self._started:
            raise UnavailableError("the exporter was not started", field="portal", value=self.portal)
        was_dead, self._dead = self._dead, False
        return was_dead

    async def stop(self) -> None:
        self._started = False
        self.live.clear()

    async def export(self, volume_id: str, path: Path) -> Export:
        await self.check()
        offer = self._offers.setdefault(check_volume_id(volume_id), ExportRecord(volume=volume_id, tid=1, path=path))
        if offer.path != path:
            raise ConflictError(
                "the volume is exported from another path", field="path", value=path, remedy="Unexport it first."
            )
        return Export(f"iqn.2026-01.io.serai:vol.{volume_id}", 1)

    async def unexport(self, volume_id: str) -> None:
        await self.check()
        self._offers.pop(check_volume_id(volume_id), None)
        self.live = [session for session in self.live if session.volume_id != volume_id]

    async def admit(self, volume_id: str, admission: Admission) -> None:
        check_admission(admission)
        await self.check()
        offer = self._offer(volume_id).admitting(admission)
        for other in {**self._offers, volume_id: offer}.values():
            for known in other.admissions:
                same_user = known.user == admission.user and known is not admission
                if same_user and (other is offer or known.password != admission.password):
                    raise ConflictError(
                        "the CHAP user is taken", field="user", value=known.user, remedy="Use another name."
                    )
        self._offers[volume_id] = offer

    async def refuse(self, volume_id: str, vm: VmId, epoch: int, host: HostName | None = None) -> None:
        await self.check()
        offer = self._offers[volume_id] = self._offer(volume_id).refusing(vm, epoch, host)
        admitted = {admission.initiator for admission in offer.admissions}
        self.live = [
            session for session in self.live if session.volume_id != volume_id or session.info.initiator in admitted
        ]

    async def sessions(self, volume_id: str) -> list[Session]:
        self._offer(volume_id)
        return [session.info for session in self.live if session.volume_id == volume_id]

    async def grow(self, volume_id: str) -> None:
        await self.check()
        self._offer(volume_id)

    def login(self, volume_id: str, admission: Admission) -> FakeSession:
        """Connect as an initiator would; raises UnauthorizedError or UnavailableError."""
        if not self._started or self._dead:
            raise UnavailableError("nobody answers", field="portal", value=self.portal)
        if admission not in self._offer(volume_id).admissions:
            raise UnauthorizedError("the target refuses the login", field="initiator", value=admission.initiator)
        session = FakeSession(self, volume_id, Session(admission.initiator, next(self._numbers), (0,), "192.0.2.2"))
        self.live.append(session)
        return session

    def crash(self) -> None:
        """The target dies, as by kill -9."""
        self._dead = True
        self.live.clear()

    def _offer(self, volume_id: str) -> ExportRecord:
        offer = self._offers.get(check_volume_id(volume_id))
        if offer is None:
            raise not_exported(volume_id)
        return offer
