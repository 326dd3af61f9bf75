"""A seal on an image folder: proof, as cheap as a stat per file, that nothing changed since its sums were verified.

Sealing verifies each file's SHA-256, makes the files read-only and durable (fsync, before the folder gets its name, so
that a power cut cannot leave a short file under a good manifest), and writes a stamp: size, mtime and ctime of each.
Whoever is about to use the folder compares. A stamp that does not fit proves no damage (a restored backup has other
times), so then the checksums decide; a stamp that fits rules out all but damage below the file system.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

from serai.drivers.image.base import MANIFEST, read_manifest
from serai.lib import atomicfile
from serai.lib.streamfile import sha256_file
from serai.schema.errors import HostError
from serai.schema.image import ImageManifest

STAMP = ".verified"
READ_ONLY = 0o444
"""QEMU's user reads kernels here; nobody writes."""

Signature = dict[str, list[int]]
"""File name to [size, mtime in ns, ctime in ns]."""


def signature(folder: Path, manifest: ImageManifest) -> Signature | None:
    """How the manifest and its files look now; None if one is missing or no regular file."""
    found: Signature = {}
    for name in (MANIFEST, *(row.name for row in manifest.files)):
        try:
            seen = os.lstat(folder / name)
        except OSError:
            return None
        if not stat.S_ISREG(seen.st_mode):
            return None
        found[name] = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    return found


def stamped(folder: Path) -> Signature | None:
    """What the stamp says; None without one that can be read."""
    try:
        data = json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def intact(folder: Path, manifest: ImageManifest) -> bool:
    """Whether the folder looks as it did when it was sealed."""
    now = signature(folder, manifest)
    return now is not None and now == stamped(folder)


async def damage(folder: Path, manifest: ImageManifest) -> str | None:
    """What is wrong with the files, in words, all content read; None if nothing is."""
    for row in manifest.files:
        file = folder / row.name
        try:
            seen = os.lstat(file)
            if not stat.S_ISREG(seen.st_mode):
                return f"{row.name} is no regular file"
            if seen.st_size != row.size:
                return f"{row.name} has {seen.st_size} bytes instead of {row.size}"
            if await sha256_file(file) != row.sha256:
                return f"{row.name} does not have its checksum"
        except FileNotFoundError:
            return f"{row.name} is missing"
        except OSError as error:
            return f"{row.name} cannot be read: {error.strerror}"
    return None


async def seal(folder: Path) -> ImageManifest:
    """Verify, make read-only and durable, and stamp. Raises NotFoundError without a manifest, HostError if damaged."""
    manifest = read_manifest(folder)
    wrong = await damage(folder, manifest)
    if wrong is not None:
        raise HostError(
            f"the image's file {wrong}", field="image", value=manifest.name, remedy="Try again; nothing was kept."
        )
    await asyncio.to_thread(_stamp, folder, manifest)
    return manifest


def _stamp(folder: Path, manifest: ImageManifest) -> None:
    for name in (MANIFEST, *(row.name for row in manifest.files)):
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, READ_ONLY)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    atomicfile.write_text(folder / STAMP, json.dumps(signature(folder, manifest)))
