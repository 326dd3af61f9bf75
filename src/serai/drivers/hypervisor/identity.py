"""What QEMU's user may open beside what it is handed."""

from __future__ import annotations

import stat
from pathlib import Path

KVM = Path("/dev/kvm")
READ_WRITE = stat.S_IRGRP | stat.S_IWGRP


def accel_groups(accel: str) -> list[int]:
    """The group that may open /dev/kvm, for a guest that runs on it; never root's own."""
    if accel != "kvm" or not KVM.exists():
        return []
    status = KVM.stat()
    return [status.st_gid] if status.st_gid != 0 and status.st_mode & READ_WRITE == READ_WRITE else []
