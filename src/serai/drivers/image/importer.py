"""Cloud images from files and URLs: checked before they count.

The format is what `qemu-img` finds in the content, restricted to raw and qcow2; a qcow2 that refers to other files (a
backing file, an external data file) is refused, since whoever made it would choose what this host reads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from serai.drivers.image.base import Progress, write_manifest
from serai.lib.process import ProcessError, run
from serai.schema.errors import CapacityError, HostError, InvalidError, NotFoundError, UnavailableError
from serai.schema.image import ImageKind, ImageManifest

CHUNK = 1 << 20


async def from_url(url: str, sha256: str | None, name: str, folder: Path, progress: Progress) -> ImageManifest:
    """Download a disk image. Raises InvalidError (checksum, format), UnavailableError, CapacityError."""
    if not url.startswith(("https://", "http://")):
        raise InvalidError(
            "an image's URL is http or https", field="spec.url", value=url, remedy="Import a file by its path."
        )
    if url.startswith("http://") and sha256 is None:
        raise InvalidError(
            "an image over plain http needs a checksum", field="spec.sha256", remedy="Give --sha256, or use https."
        )
    timeout = httpx.Timeout(30.0)
    try:
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=timeout) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code == httpx.codes.NOT_FOUND:
                raise NotFoundError("there is nothing at this URL", field="spec.url", value=url)
            if response.is_error:
                raise UnavailableError(f"the server answered {response.status_code}", field="spec.url", value=url)
            total = int(response.headers.get("content-length", 0))
            return await from_stream(response.aiter_bytes(CHUNK), total, sha256, name, folder, progress)
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"the download failed: {error}", field="spec.url", value=url, remedy="Try again."
        ) from error


async def from_stream(
    source: AsyncIterator[bytes], total: int, sha256: str | None, name: str, folder: Path, progress: Progress
) -> ImageManifest:
    """Take a disk image from a stream of bytes into an empty folder; `total` in bytes, 0 if unknown."""
    digest = hashlib.sha256()
    done = 0
    target = folder / "incoming"
    try:
        with target.open("wb") as file:
            async for chunk in source:
                digest.update(chunk)
                file.write(chunk)
                done += len(chunk)
                progress("receiving", done / total if total else None)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"no room for the image after {done} bytes", field="image", value=name, remedy="Free space on the host."
            ) from error
        raise HostError(f"the image cannot be written: {error}", field="image", value=name) from error
    found = digest.hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise InvalidError(
            f"the image's checksum is {found}, not the one given",
            field="spec.sha256",
            value=sha256,
            remedy="Check the file and the checksum; nothing was kept.",
        )
    progress("checking the format", None)
    image_format, size = await inspect(target)
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


async def inspect(file: Path) -> tuple[str, int]:
    """(format, virtual size in bytes) of a disk image. Raises InvalidError for what may not be used."""
    with file.open("rb") as opened:
        magic = opened.read(4)
    image_format = "qcow2" if magic == b"QFI\xfb" else "raw"
    try:
        shown = await run(["qemu-img", "info", "--output=json", "-f", image_format, str(file)])
    except ProcessError as error:
        raise InvalidError(
            f"this is no {image_format} image: {error.stderr}", field="image", value=file.name
        ) from error
    info = json.loads(shown.stdout)
    details = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or info.get("full-backing-filename") or details.get("data-file"):
        raise InvalidError(
            "the image refers to another file",
            field="image",
            value=info.get("backing-filename") or details.get("data-file"),
            remedy="Flatten it first: qemu-img convert -O qcow2 IMAGE FLAT.",
        )
    size = int(info["virtual-size"])
    if image_format == "raw" and (size == 0 or _other_format(magic, file)):
        raise InvalidError(
            "only raw and qcow2 images can be imported", field="image", value=file.name, remedy="Convert it."
        )
    return image_format, size


def _other_format(magic: bytes, file: Path) -> bool:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        head = opened.read(512)
        return magic == b"KDMV" or head.startswith(
            (b"conectix", b"vhdxfile", b"<<< ", b"# Disk Desc", b"\x1f\x8b", b"\xfd7zXZ")
        )
    return False
