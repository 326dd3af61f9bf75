"""A control group of its own for each VM, where this machine has them: v2, v1 (the first controllers found), or none.

A group lets the machine's limits and counters be kept per VM, and keeps QEMU out of the agent's group, which a service
manager would empty as the agent stops. Nothing depends on it: a machine without groups runs VMs all the same.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serai.schema.host import Ability

log = logging.getLogger(__name__)

ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu,cpuacct", "memory", "pids")
"""The v1 hierarchies in which a VM gets a group, if they are mounted."""


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """`version` 2, 1 or 0 (none); `roots`: the folders below which groups are made."""

    version: int
    roots: tuple[Path, ...]


def hierarchies(root: Path = ROOT) -> Hierarchies:
    """Look at what is mounted. A v2 hierarchy without controllers beside v1 (hybrid) counts as v1."""
    if (root / "cgroup.controllers").is_file():
        return Hierarchies(2, (root,))
    names = list(V1_CONTROLLERS)
    if not (root / V1_CONTROLLERS[0]).is_dir():
        # One hierarchy on most machines, two on some.
        names[:1] = ["cpu", "cpuacct"]
    v1 = [root / name for name in names if (root / name / "cgroup.procs").is_file()]
    return Hierarchies(1, tuple(v1)) if v1 else Hierarchies(0, ())


def ability(found: Hierarchies | None = None) -> Ability:
    """Whether VMs get groups of their own, seen by making one in each hierarchy."""
    name = "control-groups"
    found = found or hierarchies()
    if not found.version:
        return Ability(
            name=name,
            found=False,
            detail=f"no hierarchy is mounted below {ROOT}: VMs run in the agent's own group",
            remedy="Mount it, as systemd does: 'mount -t cgroup2 none /sys/fs/cgroup'.",
        )
    try:
        for root in found.roots:
            Path(tempfile.mkdtemp(prefix="serai-probe-", dir=root)).rmdir()
    except OSError as error:
        return Ability(
            name=name,
            found=False,
            detail=f"v{found.version} is mounted, but no group can be made in {root} ({error.strerror}): "
            "VMs run in the agent's own group",
            remedy="Run the agent as root where /sys/fs/cgroup can be written to; in a container it often cannot.",
        )
    where = "" if found.version == 2 else f" ({', '.join(root.name for root in found.roots)})"
    return Ability(name=name, found=True, detail=f"each VM gets a group of its own: v{found.version}{where}")


def join(pid: int, parent: str, name: str, found: Hierarchies | None = None) -> list[Path]:
    """Move a process, with all its threads, into `parent/name`; return the groups made. A refusal is logged only."""
    made: list[Path] = []
    for root in (found or hierarchies()).roots:
        group = root / parent / name
        try:
            group.mkdir(parents=True, exist_ok=True)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.info("process %d stays in our own control group: %s: %s", pid, group, error.strerror)
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        made.append(group)
    return made


def remove(groups: Sequence[Path]) -> None:
    """Remove empty groups; one that is not empty, or gone, stays as it is."""
    for group in groups:
        with contextlib.suppress(OSError):
            group.rmdir()
        with contextlib.suppress(OSError):
            group.parent.rmdir()
