"""The folder of a `dir` pool: whose it is, and with what rights (see `directory.py`)."""

from __future__ import annotations

import errno
import grp
import os
from pathlib import Path

from serai.lib import poolmark
from serai.schema.errors import ConflictError, HostError, InvalidError, UnsupportedError

SUFFIX = ".raw"
"""Of a volume's file."""
_FROM_MKFS = "lost+found"


class PoolFolder:
    """A folder with the mark of one pool. `group`: who may pass through it beside root. Blocking."""

    def __init__(self, root: Path, *, pool: str, group: str | None) -> None:
        self._root = root
        self._pool = pool
        self._group = group

    def open(self, *, make: bool) -> None:
        """Create it if needed, mark it, give it its rights, and sweep leftovers."""
        gid = -1 if self._group is None else gid_of(self._group)
        try:
            marked = self.marked()
            # A folder of volumes without the mark is a pool from before there was one.
            if not marked and not make and not any(self._root.glob(f"*{SUFFIX}")):
                raise self._without_mark()
            if not marked and make:
                self._refuse_inside_a_pool()
                self._refuse_others()
            made = not self._root.exists()
            self._root.mkdir(parents=True, exist_ok=True)
            poolmark.put(self._root, self._pool, made=made)
            self.check()
            os.chown(self._root, -1, gid)
            self._root.chmod(0o700 if self._group is None else 0o710)
            for entry in self._root.iterdir():
                if entry.name.startswith(poolmark.TEMPORARY):
                    entry.unlink(missing_ok=True)
        except ValueError as error:  # a null character
            raise InvalidError("not a path", field="path", value=repr(self._root), remedy="Correct it.") from error
        except OSError as error:
            raise self._unusable(error) from error

    def _refuse_inside_a_pool(self) -> None:
        """Refuse a new pool within another's folder: the outer one could never be removed again."""
        real = Path(os.path.realpath(self._root))
        outer = next((parent for parent in real.parents if poolmark.read(parent) is not None), None)
        if outer is not None:
            raise ConflictError(
                f"the folder is inside another pool's, {str(outer)!r}",
                field="path",
                value=self._root,
                remedy="Give a folder outside it. If that pool is gone for good, delete "
                f"{str(outer / poolmark.NAME)!r}.",
            )

    def _refuse_others(self) -> None:
        """Refuse a folder that others use: the pool's rights would shut them out of it (of `/etc`, of `/home`)."""
        present = os.listdir(self._root) if self._root.exists() else []
        strange = next((name for name in present if name != _FROM_MKFS and not poolmark.CONTENT.fullmatch(name)), None)
        if strange is not None:
            raise ConflictError(
                f"the folder holds other things than volumes ({strange!r}), and a pool takes its folder for itself",
                field="path",
                value=self._root,
                remedy="Give a folder that is empty, or not there yet.",
            )

    def _unusable(self, error: OSError) -> HostError:
        return HostError(
            f"the pool's directory cannot be used: {error.strerror}",
            field="path",
            value=self._root,
            remedy="Give the path of a directory on a writable file system.",
        )

    def check(self) -> None:
        """Raise an error if the folder is missing or is not this pool's."""
        if not self.marked():
            raise self._without_mark()

    def marked(self) -> bool:
        """Whether the folder has the mark, this pool's or anybody's. Raises ConflictError for another's, OSError."""
        mark = poolmark.read(self._root)
        if mark is not None and mark.pool not in ("", self._pool):
            raise ConflictError(
                f"the folder belongs to pool {mark.pool!r}, perhaps of another machine",
                field="path",
                value=self._root,
                remedy="Give another folder. If that pool is gone for good, delete "
                f"{str(self._root / poolmark.NAME)!r}.",
            )
        return mark is not None

    def _without_mark(self) -> HostError:
        return self.lost(FileNotFoundError(errno.ENOENT, "it is not there, or is not the pool's"))

    def places(self) -> frozenset[str]:
        """See `PoolDriver.places`."""
        try:
            found = {os.path.realpath(self._root)}
            inode = self._root.stat()
            found.add(f"{inode.st_dev}:{inode.st_ino}")
        except FileNotFoundError:
            return frozenset(found)  # yet to be made, or its file system is not mounted
        except ValueError as error:  # a null character
            raise InvalidError("not a path", field="path", value=repr(self._root), remedy="Correct it.") from error
        except OSError as error:
            raise self._unusable(error) from error
        return frozenset(found)

    def remove(self, *, keep: bool) -> None:
        """See `DirectoryPool.remove`."""
        try:
            names = set(os.listdir(self._root)) - {poolmark.NAME}
            if any(name.endswith(SUFFIX) for name in names) or (names and not keep):
                return
            if self.marked():
                (self._root / poolmark.NAME).unlink()
            if not keep:
                self._root.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self.lost(error) from error

    def lost(self, error: OSError) -> HostError:
        """The error for a folder that fails once it was open."""
        return HostError(
            f"the pool's folder cannot be used: {error.strerror}",
            field="path",
            value=self._root,
            remedy="Mount its file system again; if it is gone for good, make the folder and an empty "
            f"{poolmark.NAME} in it.",
        )


def gid_of(group: str) -> int:
    """The number of a group. Raises UnsupportedError."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UnsupportedError(
            "the group that QEMU runs as does not exist on this machine",
            field="group",
            value=group,
            remedy="Run script/setup, or 'groupadd --system' with that name.",
        ) from None
