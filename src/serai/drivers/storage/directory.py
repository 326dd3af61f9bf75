"""The `dir` pool: a directory with one sparse raw file for each volume.

A volume is made under a temporary name, written, synced, and only then linked to its own name: `link` refuses a name
that is taken, so nothing is overwritten, and a crash leaves only temporary names, which `open` sweeps. Copies share
blocks (FICLONE) where the file system can, and are sparse where it cannot.

A pool's folder contains a mark with the pool's id (`lib/poolmark.py`). If the folder or its mark is missing (nothing is
mounted there), every call raises HostError, `delete_volume` too: the volume may come back with its file system, so it
does not count as deleted, and no new volume is hidden below the mount point. Another pool's mark is a ConflictError.

Rights: a pool whose volumes are exported belongs to root alone, since only the target opens them; it runs as root,
because it takes orders on its control socket only from its own user. A pool whose volumes QEMU opens as files grants
read and write to QEMU's group, and passage through the folder, but not the right to list it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from serai.drivers.storage.base import (
    ImageFormat,
    PoolStatus,
    Progress,
    VolumeInfo,
    check_size,
    check_volume_id,
    no_room,
    no_volume,
    refuse_shrinking,
    volume_exists,
)
from serai.drivers.storage.pool_folder import SUFFIX, PoolFolder, gid_of
from serai.lib import poolmark, qemuimg
from serai.lib.atomicfile import sync_folder
from serai.lib.creations import to_thread_shielded
from serai.lib.process import ProcessError
from serai.schema.errors import HostError, InvalidError, NotFoundError

FICLONE = 0x40049409
"""The ioctl that makes one file share another's blocks (linux/fs.h)."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DirectoryPool:
    """A pool, by its id, in a directory. `group`: who may open the volumes as files beside root; None: nobody."""

    def __init__(self, root: Path, *, pool: str, group: str | None = None) -> None:
        self._root = root
        self._folder = PoolFolder(root, pool=pool, group=group)
        self._group = group
        self._reflink = False
        self._gid = -1

    async def open(self, *, make: bool = True) -> None:
        """Create the directory if needed, sweep leftovers, and find out what the file system can do."""
        self._gid = -1 if self._group is None else gid_of(self._group)
        await asyncio.to_thread(self._open, make)

    def _open(self, make: bool) -> None:
        self._folder.open(make=make)
        self._reflink = reflinks(self._root)

    async def places(self) -> frozenset[str]:
        """The path without symbolic links and `..`, and what a bind mount has in common: device and inode."""
        return await asyncio.to_thread(self._folder.places)

    async def remove(self, *, keep: bool) -> None:
        """Delete the mark, and the directory unless `keep`; one that holds volumes (or what looks so) stays as it is.

        Without `keep`, one that holds anything else stays as well, with its mark: its name is the pool's own.
        """
        await asyncio.to_thread(self._folder.remove, keep=keep)

    async def status(self) -> PoolStatus:
        """Return the room of the file system below. Raises HostError if the pool's folder is not there."""

        def look() -> os.statvfs_result:
            self._folder.check()
            return os.statvfs(self._root)

        try:
            room = await asyncio.to_thread(look)
        except OSError as error:
            raise self._folder.lost(error) from error
        return PoolStatus(total=room.f_blocks * room.f_frsize, free=room.f_bavail * room.f_frsize)

    async def create_volume(self, volume_id: str, size: int) -> None:
        """Create an empty sparse volume. One larger than all the room left could never be filled and is refused."""
        check_size(size)
        async with self._new(volume_id, size) as file:
            free = self._free()
            if size > free:
                raise no_room(size, free, self._root)
            await asyncio.to_thread(os.truncate, file, size)

    async def create_from_image(
        self, volume_id: str, image_file: Path, image_format: str, size: int, progress: Progress | None = None
    ) -> None:
        """Write an image's content into a new volume of `size` bytes.

        Images that lean on other files (a backing file, a data file) are refused: they would read any file of the host.
        """
        check_size(size)
        kind = _image_format(image_format)
        virtual = await _virtual_size(image_file, kind)
        if virtual > size:
            raise refuse_shrinking(size, virtual)
        async with self._new(volume_id, size) as file:
            await self._fill(image_file, kind, file, size, progress or _silent, foreign=True)
            await asyncio.to_thread(os.truncate, file, size)

    async def clone_volume(self, src_id: str, dst_id: str, progress: Progress | None = None) -> None:
        """Copy a volume; the caller sees to it that nobody writes to the source meanwhile."""
        source = self.volume_path(src_id)
        size = self._size(src_id)
        async with self._new(dst_id, size) as file:
            await self._fill(source, ImageFormat.RAW, file, size, progress or _silent, foreign=False)
            await asyncio.to_thread(os.truncate, file, size)

    async def delete_volume(self, volume_id: str) -> None:
        path = self.volume_path(volume_id)

        def delete() -> None:
            self._folder.check()
            path.unlink(missing_ok=True)
            sync_folder(self._root)

        try:
            await asyncio.to_thread(delete)
        except OSError as error:
            raise self._folder.lost(error) from error

    async def grow_volume(self, volume_id: str, size: int) -> None:
        check_size(size)
        current = self._size(volume_id)
        if size < current:
            raise refuse_shrinking(size, current)
        free = self._free()
        if size - current > free:
            raise no_room(size, free, self._root)
        path = self.volume_path(volume_id)

        def grow() -> None:
            with path.open("r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())

        try:
            await asyncio.to_thread(grow)
        except OSError as error:
            raise self._translated(error, size) from error

    async def list_volumes(self) -> list[VolumeInfo]:
        """Return the volumes by their files; anything else in the directory is not ours and is left alone."""
        try:
            return await asyncio.to_thread(self._list)
        except OSError as error:
            raise self._folder.lost(error) from error

    def _list(self) -> list[VolumeInfo]:
        self._folder.check()
        found = []
        for entry in os.scandir(self._root):
            name = entry.name.removesuffix(SUFFIX)
            if re.fullmatch(r"[0-9a-f]{12}", name) and entry.name != name and entry.is_file(follow_symlinks=False):
                # A volume may be deleted while the directory is read.
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    found.append(VolumeInfo(name, facts.st_size, facts.st_blocks * 512))
        return sorted(found, key=lambda volume: volume.id)

    def volume_path(self, volume_id: str) -> Path:
        return self._root / f"{check_volume_id(volume_id)}{SUFFIX}"

    def _size(self, volume_id: str) -> int:
        try:
            return self.volume_path(volume_id).stat().st_size
        except FileNotFoundError:
            raise no_volume(volume_id) from None

    def _free(self) -> int:
        try:
            room = os.statvfs(self._root)
        except OSError as error:
            raise self._folder.lost(error) from error
        return room.f_bavail * room.f_frsize

    @contextlib.asynccontextmanager
    async def _new(self, volume_id: str, size: int) -> AsyncIterator[Path]:
        """Yield a temporary file that becomes the volume if the block ends well, and vanishes if it does not."""
        path = self.volume_path(volume_id)
        self._folder.check()
        if path.exists():
            raise volume_exists(volume_id)
        temporary = self._root / f"{poolmark.TEMPORARY}{volume_id}-{secrets.token_hex(4)}"
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            yield temporary
            await to_thread_shielded(self._commit, temporary, path)
        except FileExistsError as error:
            raise volume_exists(volume_id) from error
        except OSError as error:
            raise self._translated(error, size) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _commit(self, temporary: Path, path: Path) -> None:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, os.geteuid(), self._gid)
            os.fchmod(descriptor, 0o600 if self._group is None else 0o660)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.hardlink_to(temporary)
        temporary.unlink()
        sync_folder(self._root)

    def _translated(self, error: OSError, size: int) -> Exception:
        if error.errno == errno.ENOENT:
            return self._folder.lost(error)
        if error.errno in _NO_ROOM:
            return no_room(size, self._free(), self._root)
        return HostError(
            f"writing to the pool failed: {error.strerror}",
            field="path",
            value=self._root,
            remedy="Look at the file system's health (dmesg).",
        )

    async def _fill(
        self, source: Path, kind: ImageFormat, target: Path, size: int, progress: Progress, *, foreign: bool
    ) -> None:
        """Put the content of an image or volume into an empty file, sharing blocks where that is possible."""
        total = source.stat().st_size
        if kind is ImageFormat.RAW and self._reflink and await asyncio.to_thread(share_blocks, source, target):
            progress(total, total)
            return
        try:
            await qemuimg.convert(source, kind.value, target, size, progress, foreign=foreign)
        except ProcessError as error:
            if "No space left" in error.stderr or "Disk quota" in error.stderr or "File too large" in error.stderr:
                # Delete the half-written file before reporting the free space.
                target.unlink(missing_ok=True)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def share_blocks(source: Path, target: Path) -> bool:
    """Make `target` a copy that shares all blocks of `source`; False if these two places cannot share."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
                return False
            raise
    return True


def reflinks(folder: Path) -> bool:
    """Whether files in this folder can share blocks: tried, not guessed from the file system's name."""
    names = [folder / f"{poolmark.TEMPORARY}probe-{secrets.token_hex(4)}" for _ in range(2)]
    try:
        # At least a block of real data: an empty file can be "cloned" where nothing else can.
        names[0].write_bytes(b"\0" * 4096)
        names[1].touch()
        return share_blocks(names[0], names[1])
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def _silent(_done: int, _total: int) -> None:
    """Discard progress."""


def _image_format(name: str) -> ImageFormat:
    try:
        return ImageFormat(name)
    except ValueError:
        raise InvalidError(
            "images are raw or qcow2", field="format", value=name, remedy="Convert it with 'qemu-img convert'."
        ) from None


async def _virtual_size(image: Path, kind: ImageFormat) -> int:
    """Return the size of the disk in an image, having made sure that it stands alone."""
    if not image.is_file():
        raise NotFoundError("there is no such image file", field="image", value=image, remedy="Import it first.")
    if kind is ImageFormat.RAW:
        size = image.stat().st_size
        return size + -size % 512
    return int((await qemuimg.info(image, kind.value, str(image)))["virtual-size"])
