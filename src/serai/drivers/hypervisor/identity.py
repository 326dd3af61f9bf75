"""Who QEMU runs as, and what that user may open."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from serai.schema.errors import HostError

KVM = Path("/dev/kvm")
READ_WRITE = stat.S_IRGRP | stat.S_IWGRP


def owner(user: str | None) -> tuple[int, int]:
    """User and group number; None: our own. Raises HostError if there is no such user."""
    if user is None:
        return os.getuid(), os.getgid()
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise HostError(f"there is no system user {user}", remedy="Run the set-up; it makes the user.") from None
    return entry.pw_uid, entry.pw_gid


def accel_groups(accel: str) -> list[int]:
    """The group that may open /dev/kvm, for a guest that runs on it; never root's own."""
    if accel != "kvm" or not KVM.exists():
        return []
    status = KVM.stat()
    return [status.st_gid] if status.st_gid != 0 and status.st_mode & READ_WRITE == READ_WRITE else []
