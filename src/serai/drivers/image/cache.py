"""Built images, kept for the whole machine: a folder for each recipe, named by its hash.

Several processes may want the same image at once (the hosts of a lab, tests): a lock per builder makes one build
it, and the others wait and find it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TextIO

from serai.drivers.image.base import MANIFEST, ImageBuilder, Progress, read_manifest

POLL = 0.1


def _silent(phase: str, fraction: float | None) -> None:
    """For who does not watch."""


async def ensure_image(builder: ImageBuilder, cache: Path, progress: Progress = _silent) -> Path:
    """The folder of an image in `cache`, built when it is not there for today's recipe. Safe for several at once.

    Raises what the builder raises; nothing is left of a failed build, and the next one sweeps what a crash left.
    """
    folder = cache / f"{builder.name}-{(await builder.recipe())[:16]}"
    if not (folder / MANIFEST).exists():
        cache.mkdir(parents=True, exist_ok=True)
        async with _locked(cache / f".lock-{builder.name}", progress):
            if not (folder / MANIFEST).exists():
                await _build(builder, cache, folder, progress)
    read_manifest(folder)
    return folder


async def _build(builder: ImageBuilder, cache: Path, folder: Path, progress: Progress) -> None:
    part = cache / f".part-{builder.name}"
    # Ours alone under the lock: what is there was left by a crash.
    await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
    part.mkdir(mode=0o755)
    try:
        await builder.build(part, progress)
        part.rename(folder)
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
