"""Built images, kept for the whole machine: a folder for each recipe, named by its hash.

Several processes may want the same image at once (the hosts of a lab, tests): a lock per builder makes one build
it, and the others wait and find it there. What is no more as it was when it was built is built again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from serai.drivers.image import seal
from serai.drivers.image.base import ImageBuilder, Progress, read_manifest
from serai.lib import atomicfile
from serai.schema.errors import NotFoundError

log = logging.getLogger(__name__)

POLL = 0.1


def _silent(phase: str, fraction: float | None) -> None:
    """For who does not watch."""


async def ensure_image(builder: ImageBuilder, cache: Path, progress: Progress = _silent) -> Path:
    """The folder of an image in `cache`, built when it is not there for today's recipe. Safe for several at once.

    Raises what the builder raises; nothing is left of a failed build, and the next one sweeps what a crash left.
    """
    folder = cache / f"{builder.name}-{(await builder.recipe())[:16]}"
    if not _intact(folder):
        cache.mkdir(parents=True, exist_ok=True)
        async with _locked(cache / f".lock-{builder.name}", progress):
            if not await _sound(folder):
                await _build(builder, cache, folder, progress)
    return folder


def _intact(folder: Path) -> bool:
    try:
        return seal.intact(folder, read_manifest(folder))
    except (NotFoundError, ValidationError):
        return False


async def _sound(folder: Path) -> bool:
    """Whether the folder may be used. Ours alone under the lock: one without a good seal is sealed, or removed."""
    if _intact(folder):
        return True
    try:
        wrong = await seal.damage(folder, read_manifest(folder))
    except NotFoundError:
        wrong = ""
    except ValidationError:
        wrong = "its manifest cannot be read"
    if wrong is None:
        await seal.seal(folder)
        return True
    if wrong:
        log.error("the built image %s is damaged, and built again: %s", folder, wrong)
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return False


async def _build(builder: ImageBuilder, cache: Path, folder: Path, progress: Progress) -> None:
    part = cache / f".part-{builder.name}"
    # Ours alone under the lock: what is there was left by a crash.
    await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
    part.mkdir(mode=0o755)
    try:
        await builder.build(part, progress)
        await seal.seal(part)
        part.rename(folder)
        await asyncio.to_thread(atomicfile.sync_folder, cache)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.asynccontextmanager
async def _locked(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold a lock file. Asked for again and again instead of waited for in a thread, which could not be cancelled."""
    with path.open("w") as lock:
        if not _taken(lock):
            progress("waiting for another build of this image", None)
            while not _taken(lock):
                await asyncio.sleep(POLL)
        yield


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
