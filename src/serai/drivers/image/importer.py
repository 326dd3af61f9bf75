"""Cloud images from files and URLs: checked before they count.

The format is what `qemu-img` finds in the content, restricted to raw and qcow2; a qcow2 that refers to other files (a
backing file, an external data file) is refused, since whoever made it would choose what this host reads.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import httpx

from serai.drivers.image.base import Progress, write_manifest
from serai.lib import qemuimg
from serai.lib.imageurl import check_url, hide_url, masked_url
from serai.lib.redact import redact
from serai.lib.room import need_room
from serai.schema.errors import CapacityError, HostError, InvalidError, NotFoundError, UnavailableError
from serai.schema.image import ImageKind, ImageManifest

CHUNK = 1 << 20
SHOWN = 40
READABLE = 0o644
"""QEMU's user looks at it."""
SLOW = (60.0, 60 << 10)
"""A download that brings less than so many bytes in so many seconds is given up: it would never end."""
HEAD = 512
SECTOR = 512
QCOW2 = b"QFI\xfb"
OTHERS = (
    (b"KDMV", "VMDK"), (b"# Disk Desc", "VMDK"), (b"conectix", "VHD"), (b"vhdxfile", "VHDX"), (b"<<< ", "VDI"),
    (b"QED\0", "QED"), (b"LUKS\xba\xbe", "LUKS"), (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip"),
)  # fmt: skip
"""First bytes of formats that would else pass for raw disks."""


async def from_url(
    url: str, sha256: str | None, name: str, folder: Path, progress: Progress, wanted: str | None = None
) -> ImageManifest:
    """Download a disk image; `wanted` is its format, if that was told.

    Raises InvalidError (checksum, format), UnavailableError, CapacityError.
    """
    _check(url, sha256)
    hide_url(url)

    async def look(request: httpx.Request) -> None:
        # Redirects lead anywhere: from https to http, to no URL at all, or to one with a token of its own, and the
        # HTTP library logs each request.
        _check(str(request.url), sha256)
        hide_url(str(request.url))

    shown = masked_url(url)
    try:
        async with (
            httpx.AsyncClient(
                # Unpacked, an image has any size, whatever was announced.
                headers={"Accept-Encoding": "identity"},
                follow_redirects=True,
                timeout=httpx.Timeout(30.0),
                event_hooks={"request": [look]},
            ) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code == httpx.codes.NOT_FOUND:
                raise NotFoundError(
                    "there is nothing at this URL", field="spec.url", value=shown, remedy="Look at the address again."
                )
            if response.is_error:
                raise UnavailableError(
                    f"the server answered {response.status_code}",
                    field="spec.url",
                    value=shown,
                    remedy="Try again later, or look at the address again.",
                )
            packed = response.headers.get("content-encoding", "identity")
            if packed != "identity":
                raise InvalidError(
                    f"the server packs the image ({packed[:SHOWN]}) although it was asked not to",
                    field="spec.url",
                    value=shown,
                    remedy="Download and unpack it yourself, and import the file.",
                )
            total = int(response.headers.get("content-length", 0))
            pieces = steady(response.aiter_raw(), shown, asyncio.get_running_loop().time)
            return await from_stream(pieces, total, sha256, name, folder, progress, wanted)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # Without the cause, which holds the request and with it the credentials.
        raise UnavailableError(
            f"the download failed: {redact(str(error)) or type(error).__name__}",
            field="spec.url",
            value=shown,
            remedy="Try again.",
        ) from None


async def steady(pieces: AsyncIterator[bytes], shown: str, now: Callable[[], float]) -> AsyncIterator[bytes]:
    """What comes from a server, in larger chunks. Raises UnavailableError if next to nothing comes (see `SLOW`)."""
    window, least = SLOW
    began, came = now(), 0
    chunk = bytearray()
    async for piece in pieces:
        chunk += piece
        came += len(piece)
        if now() - began >= window:
            if came < least:
                raise UnavailableError(
                    f"the server sent {came} bytes in {now() - began:.0f} s, and the download was given up",
                    field="spec.url",
                    value=shown,
                    remedy="Try again later, or download it yourself and import the file.",
                )
            began, came = now(), 0
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


def _check(url: str, sha256: str | None) -> None:
    check_url(url)
    if url.lower().startswith("http:") and sha256 is None:
        raise InvalidError(
            "an image over plain http needs a checksum", field="spec.sha256", remedy="Give --sha256, or use https."
        )


async def from_stream(
    source: AsyncIterator[bytes],
    total: int,
    sha256: str | None,
    name: str,
    folder: Path,
    progress: Progress,
    wanted: str | None = None,
) -> ImageManifest:
    """Take a disk image from a stream of bytes into an empty folder; `total` in bytes, 0 if unknown.

    More than `total` is refused, and so is what would take the reserve of the file system (see `lib/room.py`).
    Content of another format than `wanted` is refused: a web server's error page, saved as qcow2, is no raw disk.
    """
    target = folder / "incoming"
    done, found = await _receive(source, total, name, target, progress)
    if sha256 is not None and found != sha256.lower():
        raise InvalidError(
            f"the image's checksum is {found}, not the one given",
            field="spec.sha256",
            value=sha256,
            remedy="Check the file and the checksum; nothing was kept.",
        )
    progress("checking the format", None)
    image_format, size = await inspect(target, name)
    if wanted is not None and wanted != image_format:
        raise InvalidError(
            f"the content is {image_format}, not {wanted}",
            field="spec.format",
            value=wanted,
            remedy=f"Check that it is the right image; if it is, say --format {image_format}.",
        )
    if image_format == "raw":
        _check_sectors(done, name)
    target.rename(folder / f"disk.{image_format}")
    return await write_manifest(
        folder,
        name=name,
        kind=ImageKind.DISK,
        files=[f"disk.{image_format}"],
        image_format=image_format,
        virtual_size=size,
        cloud_init=True,
    )


async def _receive(
    source: AsyncIterator[bytes], total: int, name: str, target: Path, progress: Progress
) -> tuple[int, str]:
    """Write the stream into a file; its bytes, and their SHA-256."""
    need_room(target.parent, total, "image", name)
    digest = hashlib.sha256()
    done = 0
    try:
        with target.open("wb") as file:
            os.fchmod(file.fileno(), READABLE)
            async for chunk in source:
                if total and done + len(chunk) > total:
                    raise InvalidError(
                        f"there is more of the image than the {total} bytes that were announced",
                        field="image",
                        value=name,
                        remedy="Look at what sends it; nothing was kept.",
                    )
                need_room(target.parent, len(chunk), "image", name)
                await asyncio.to_thread(_take, file, digest, chunk)
                done += len(chunk)
                progress("receiving", done / total if total else None)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"no room for the image after {done} bytes", field="image", value=name, remedy="Free space on the host."
            ) from error
        raise HostError(f"the image cannot be written: {error}", field="image", value=name) from error
    return done, digest.hexdigest()


def _take(file: BinaryIO, digest: hashlib._Hash, chunk: bytes) -> None:
    digest.update(chunk)
    file.write(chunk)


async def inspect(file: Path, name: str) -> tuple[str, int]:
    """(format, virtual size in bytes) of a disk image that is to be called `name`. Raises InvalidError."""
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    image_format = "qcow2" if head.startswith(QCOW2) else "raw"
    if image_format == "raw":
        _check_raw(head, name)
    facts = await qemuimg.info(file, image_format, name)
    if image_format == "qcow2":
        await _check_whole(file, name)
    return image_format, int(facts["virtual-size"])


def _check_raw(head: bytes, name: str) -> None:
    """Refuse what is certainly something else; all other content is a raw disk."""
    found = next((other for magic, other in OTHERS if head.startswith(magic)), None)
    if found is not None or not head:
        raise InvalidError(
            f"only raw and qcow2 images can be imported, not {found or 'an empty file'}",
            field="image",
            value=name,
            remedy="Unpack it, or convert it: qemu-img convert -O qcow2 IMAGE NEW.",
        )


def _check_sectors(size: int, name: str) -> None:
    """Refuse a raw disk that is no disk: a text file, or a part of one."""
    if size % SECTOR:
        raise InvalidError(
            f"this is no raw disk image: it has {size} bytes, and a disk has whole sectors of {SECTOR}",
            field="image",
            value=name,
            remedy="See that it is the right file, and all of it; "
            f"a disk that was cut so is repaired with: truncate -s %{SECTOR} IMAGE.",
        )


async def _check_whole(file: Path, name: str) -> None:
    """Refuse a qcow2 that is damaged or shorter than what its tables say. Raises InvalidError."""
    end = int((await qemuimg.check(file, name)).get("image-end-offset", 0))
    size = file.stat().st_size
    with file.open("rb") as opened:
        cluster = 1 << struct.unpack_from(">I", opened.read(HEAD), 20)[0]
    # The tables count in clusters, of which the last may be cut short in a sound file.
    if end >= size + cluster:
        raise InvalidError(
            f"the image is cut off: it has {size} bytes of {end}", field="image", value=name, remedy=qemuimg.AGAIN
        )
