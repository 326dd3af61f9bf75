"""`qemu-img` on images that strangers made: as QEMU's user, within limits, and on nothing but the image.

It gets descriptors. Opening `/dev/fd/N` asks for the rights of that file alone, not for a way through the folders above
it, so that the user needs no more than to read the image, and to write the one file that a conversion fills.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serai.lib.process import Limits, ProcessError, owner, run, spawn
from serai.schema.errors import InvalidError

QEMU_USER = "serai-qemu"
HEAD = 512
QCOW2_HEADER = 72
EXTERNAL_DATA = 1 << 2
LEAKS = 3
"""What `qemu-img check` answers for clusters that nobody uses: a waste, no damage."""
TIMEOUT = 600.0
MEMORY = 1 << 30
"""Bytes. A check of 1 TiB takes some 200 MiB."""
WORDS = 1 << 20
"""Bytes that it may say."""
SLOWEST = 10 << 20
"""Bytes of a disk for which a conversion gets another second of processor time; compressed ones take a tenth of it."""
PROGRESS_PERIOD = 0.2
"""Seconds between two looks at how far a conversion is: fast enough for a progress bar."""
AGAIN = "Download it again, and give its checksum."
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")

Progress = Callable[[int, int], None]


async def info(file: Path, image_format: str, name: str) -> dict[str, Any]:
    """What `qemu-img info` says of an image called `name`. Raises InvalidError."""
    return await _ask("info", file, image_format, name)


async def check(file: Path, name: str) -> dict[str, Any]:
    """What `qemu-img check` says of a qcow2 image without damage. Raises InvalidError."""
    return await _ask("check", file, "qcow2", name)


async def _ask(verb: str, file: Path, image_format: str, name: str) -> dict[str, Any]:
    with file.open("rb") as opened:
        if image_format == "qcow2":
            _refuse_references(opened.read(HEAD), name)
        place = f"/dev/fd/{opened.fileno()}"
        argv = ["qemu-img", verb, "--output=json", "-U", "-f", image_format, place]
        limits = Limits(memory=MEMORY, cpu=int(TIMEOUT), file_size=WORDS)
        try:
            done = await run(
                argv, check=False, timeout=TIMEOUT, user=QEMU_USER, limits=limits, pass_fds=[opened.fileno()]
            )
            if done.returncode not in ({0, LEAKS} if verb == "check" else {0}):
                raise ProcessError(argv, done.returncode, done.stderr or done.stdout, f"ended with {done.returncode}")
        except ProcessError as error:
            reason = error.stderr.replace(place, name) or error.info.message
            raise InvalidError(
                f"this is no sound {image_format} image: {reason}", field="image", value=name, remedy=AGAIN
            ) from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _refuse_references(head: bytes, name: str) -> None:
    """Refuse a qcow2 that refers to other files, before QEMU's own tools see it: they would open them.

    The layout is in QEMU's docs/interop/qcow2.txt: version at 4, the backing file's offset at 8, incompatible features
    at 72 from version 3 on, of which bit 2 says that there is an external data file.
    """
    if len(head) < QCOW2_HEADER:
        raise InvalidError("this qcow2 image is cut off", field="image", value=name, remedy=AGAIN)
    version, backing = struct.unpack_from(">IQ", head, 4)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 and len(head) >= 80 else 0
    if backing or features & EXTERNAL_DATA:
        raise InvalidError(
            "the image refers to another file",
            field="image",
            value=name,
            remedy="Flatten it first: qemu-img convert -O qcow2 IMAGE FLAT.",
        )


async def convert(
    source: Path, image_format: str, target: Path, size: int, progress: Progress, *, foreign: bool
) -> None:
    """Write an image's content into an existing file of at most `size` bytes, raw. Raises ProcessError.

    What is not `foreign` is read as our own user: a volume, which QEMU's user cannot open. The target belongs to
    QEMU's user in the end, if the image is foreign.
    """
    total = source.stat().st_size
    limits = Limits(memory=MEMORY, cpu=int(TIMEOUT) + size // SLOWEST, file_size=size + WORDS)
    # What it says is kept in memory: on a full file system its last words would be lost.
    with (
        source.open("rb") as reader,
        target.open("r+b") as writer,
        open(os.memfd_create("said"), "rb") as said,  # noqa: ASYNC230 - memory, not a disk
        open(os.memfd_create("wrong"), "rb") as wrong,  # noqa: ASYNC230
    ):
        uid, gid = owner(QEMU_USER if foreign else None)
        os.fchown(writer.fileno(), uid, -1)
        ends = [reader.fileno(), writer.fileno()]
        argv = ["qemu-img", "convert", "-p", "-U", "-f", image_format, "-O", "raw", *(f"/dev/fd/{end}" for end in ends)]
        child = await spawn(
            argv, user=uid, group=gid, limits=limits, pass_fds=ends, stdout=said.fileno(), stderr=wrong.fileno()
        )
        over = asyncio.ensure_future(child.wait())
        try:
            while not over.done():
                await asyncio.wait({over}, timeout=PROGRESS_PERIOD)
                if percents := _PERCENT.findall(_tail(said.fileno())):
                    progress(int(total * float(percents[-1]) / 100), total)
        finally:
            if not over.done():
                child.send_signal(signal.SIGKILL)
            code = await asyncio.shield(over)
        if code != 0:
            raise ProcessError(argv, code, _tail(wrong.fileno()), f"failed with code {code}")
    progress(total, total)


def _tail(descriptor: int, length: int = 2000) -> bytes:
    return os.pread(descriptor, length, max(0, os.fstat(descriptor).st_size - length))
