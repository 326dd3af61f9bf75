"""A file over a stream: resumed where it broke off, checked as a whole, whole or absent at its place.

The receiver says how much it has (`FILE.part` of an earlier attempt); the sender answers with the size and from where
it sends, then sends the rest, then the SHA-256 of the whole. Only a file whose digest is right gets its name. Blocks of
zeros become holes, so that a sparse image stays sparse.
"""

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import Field, ValidationError

from serai.lib import atomicfile
from serai.lib.stream import FRAME, Reader, StreamCut, Writer
from serai.schema.errors import CapacityError, HostError, InvalidError
from serai.schema.resource import Frozen

ModelT = TypeVar("ModelT", bound=Frozen)

Progress = Callable[[int, int], None]
"""Called with (bytes there so far, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """A file that has arrived: its size in bytes, its digest, and how many bytes really travelled."""

    size: int
    sha256: str
    sent: int


class _Have(Frozen):
    offset: int = Field(ge=0)


class _Sending(Frozen):
    size: int = Field(ge=0)
    offset: int = Field(ge=0)


class _Sum(Frozen):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


async def sha256_file(path: Path, *, size: int | None = None) -> str:
    """Return the SHA-256 of the file (or of its first `size` bytes) in hexadecimal."""
    digest = await asyncio.to_thread(_digest, path, size)
    return digest.hexdigest()


def _digest(path: Path, size: int | None) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = size
        while data := file.read(FRAME if left is None else min(FRAME, left)):
            digest.update(data)
            if left is not None:
                left -= len(data)
    return digest


async def send_file(reader: Reader, writer: Writer, path: Path, *, progress: Progress | None = None) -> Transferred:
    """Send the file to a `receive_file` at the other end. Raises OSError, StreamCut, or the receiver's error."""
    have = _parse(_Have, await reader.read_message())
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = have.offset if have.offset <= size else 0
        await writer.write_message(_Sending(size=size, offset=offset).model_dump_json().encode())
        digest = await asyncio.to_thread(_digest, path, offset)
        await asyncio.to_thread(file.seek, offset)
        done = offset
        while done < size:
            data = await asyncio.to_thread(file.read, min(FRAME, size - done))
            if not data:
                raise InvalidError("the file shrank while it was sent", field="file", value=path.name)
            digest.update(data)
            await writer.write(data)
            done += len(data)
            if progress is not None:
                progress(done, size)
    await writer.write_message(_Sum(sha256=digest.hexdigest()).model_dump_json().encode())
    return Transferred(size, digest.hexdigest(), size - offset)


async def receive_file(
    reader: Reader,
    writer: Writer,
    path: Path,
    *,
    sha256: str | None = None,
    mode: int = 0o644,
    progress: Progress | None = None,
) -> Transferred:
    """Receive what `send_file` sends and put it at `path`, atomically and durably.

    What arrived stays as `<path>.part` when the stream is cut, and the next call goes on from there. Raises StreamCut,
    CapacityError (no space), HostError (another I/O error), InvalidError if the digest is not the sender's, or not
    `sha256`: the part is removed then.
    """
    part = path.with_name(path.name + ".part")
    with part.open("ab") as file:
        have = file.tell()
    await writer.write_message(_Have(offset=have).model_dump_json().encode())
    sending = _parse(_Sending, await reader.read_message())
    if sending.offset > have:
        raise InvalidError("the sender skips bytes that are not here", field="offset", value=sending.offset)
    try:
        with part.open("r+b") as file:
            file.truncate(sending.offset)
            file.seek(sending.offset)
            digest = await asyncio.to_thread(_digest, part, sending.offset)
            await _receive_rest(reader, file, sending, digest, progress)
            theirs = _parse(_Sum, await reader.read_message()).sha256
            await asyncio.to_thread(os.fsync, file.fileno())
    except OSError as error:
        kind = CapacityError if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostError
        raise kind(f"cannot write {part.name}: {error.strerror}", field="file", value=part) from error
    ours = digest.hexdigest()
    wanted = theirs if sha256 is None else sha256.lower()
    if ours != theirs or ours != wanted:
        part.unlink()
        raise InvalidError(
            "the file that arrived is not the one that was meant (its SHA-256 differs)",
            field="sha256",
            value=ours,
            remedy=f"Expected {wanted}. Nothing was kept; check the source and try again.",
        )
    part.chmod(mode)
    part.rename(path)
    atomicfile.sync_folder(path.parent)
    return Transferred(sending.size, ours, sending.size - sending.offset)


async def _receive_rest(
    reader: Reader, file: BinaryIO, sending: _Sending, digest: "hashlib._Hash", progress: Progress | None
) -> None:
    done = sending.offset
    try:
        while done < sending.size:
            data = await reader.read(min(FRAME, sending.size - done))
            if not data:
                raise StreamCut(f"the sender stopped after {done} of {sending.size} bytes")
            digest.update(data)
            await asyncio.to_thread(_put, file, data)
            done += len(data)
            if progress is not None:
                progress(done, sending.size)
    finally:
        # A hole at the end exists only once the length says so; this also makes the part resumable.
        file.truncate(done)


def _put(file: BinaryIO, data: bytes) -> None:
    if data.count(0) == len(data):
        file.seek(len(data), os.SEEK_CUR)
    else:
        file.write(data)


def _parse(model: type[ModelT], data: bytes) -> ModelT:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise InvalidError("the other end does not follow the file protocol", field="message", value=data) from error
