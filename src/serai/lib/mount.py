"""Mounts, mount namespaces that outlive their processes, and loop devices.

A mount namespace lives as long as a process is in it or its nsfs file is bind-mounted somewhere. `make_namespace` pins
it by such a mount, on a folder whose mounts are private (the kernel refuses the pin elsewhere), so that it survives the
kill -9 of everything in it and goes with `unmount`.

Blocking calls take well under a millisecond. Errors: HostError with what was attempted and what the kernel said.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serai.lib.process import run
from serai.schema.errors import HostError

MS_BIND = 0x1000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_INFO64_SIZE = 232

_libc = ctypes.CDLL(None, use_errno=True)

_FURNISH = """
set -eu
drop=$1; shift
while [ "$drop" -gt 0 ]; do umount --lazy -- "$1"; shift; drop=$((drop - 1)); done
while [ $# -gt 0 ]; do mount --no-canonicalize --bind -- "$1" "$2"; shift 2; done
"""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    target: Path
    kind: str
    source: str


def mounts(below: Path | None = None) -> list[Mount]:
    """The mounts of our namespace in order of mounting; with `below`, those at that folder or inside."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        target = Path(_unescaped(fields[4]))
        if below is None or target == below or below in target.parents:
            found.append(Mount(target, rest[0], _unescaped(rest[1])))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def bind(source: Path, target: Path) -> None:
    """Make `source` appear at `target` too, which must exist."""
    _mount(source, target, MS_BIND, f"bind {source} to {target}")


def make_private(target: Path) -> None:
    """Keep mounts inside `target`, itself a mount, from being copied to other namespaces."""
    _mount(None, target, MS_PRIVATE, f"make the mount {target} private")


def _mount(source: Path | None, target: Path, flags: int, what: str) -> None:
    origin = b"none" if source is None else os.fsencode(source)
    if _libc.mount(origin, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        raise HostError(f"cannot {what}: {os.strerror(ctypes.get_errno())}")


def unmount(target: Path, *, lazy: bool = True) -> None:
    """Take a mount away; one that is gone is fine. Not `lazy`: only if nobody uses it, else HostError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH if lazy else 0) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise HostError(f"cannot unmount {target}: {os.strerror(code)}")


def unmount_below(folder: Path) -> None:
    """Take away every mount at the folder or inside, the last first."""
    for found in reversed(mounts(folder)):
        unmount(found.target)


async def make_namespace(
    pin: Path, binds: Sequence[tuple[Path, Path]], *, env: Mapping[str, str] | None = None
) -> None:
    """Make a mount namespace, pinned at the file `pin`, in which each `(source, target)` of `binds` is bound.

    `pin` must lie on a private mount; it is created. Unmounts of the machine reach the new namespace (it is a slave),
    and what others have on loop devices or FUSE is not taken into it, so that it keeps nothing of theirs busy. `env` is
    the environment of the programs that make it: they run on for a moment where their caller was killed.
    """
    pin.touch(mode=0o600)
    dropped = [
        str(found.target)
        for found in reversed(mounts())
        if found.source.startswith("/dev/loop") or found.kind.startswith("fuse.")
    ]
    pairs = [str(path) for pair in binds for path in pair]
    furnish = ["sh", "-c", _FURNISH, "sh", str(len(dropped)), *dropped, *pairs]
    await run(["unshare", f"--mount={pin}", "--propagation", "slave", "--", *furnish], env=env)


def loops_on(folder: Path) -> list[Path]:
    """Loop devices whose file lies in the folder, under whatever path it was opened."""
    attached: dict[tuple[int, int], list[Path]] = {}  # several devices may stand on one file
    for entry in Path("/sys/block").glob("loop*"):
        if (entry / "loop").is_dir() and (identity := _backing(Path("/dev") / entry.name)) is not None:
            attached.setdefault(identity, []).append(Path("/dev") / entry.name)
    if not attached:
        return []
    found = []
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                status = os.lstat(os.path.join(path, name))
            except FileNotFoundError:
                continue
            found += attached.get((status.st_dev, status.st_ino), [])
    return found


def _backing(device: Path) -> tuple[int, int] | None:
    """Device and inode of the file under a loop device (loop(4)); None if it was detached meanwhile."""
    info = bytearray(LOOP_INFO64_SIZE)
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.ioctl(descriptor, LOOP_GET_STATUS64, info)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    number, inode = struct.unpack_from("QQ", info)
    return number, inode


def detach_loop(device: Path) -> None:
    """Free a loop device; while somebody has it open, the kernel frees it at the last close."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise HostError(f"cannot detach {device}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(descriptor)
