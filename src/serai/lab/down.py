"""Takes a lab away, whatever state it is in, and leaves nothing behind.

Nothing is believed of what the lab's records say alone: processes are found by the namespace they are in and by the
mark in their environment, mounts and loop devices by the folder they lie in. The order makes it safe to be killed at
any point and begun again: processes first, while the pinned namespaces still show which they are; the folder last,
since it says that there is a lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil

from serai.client import context as contexts
from serai.lab import state, topology
from serai.lab.state import LabFolder, LabState, Phase
from serai.lib import mount, namespace, poolmark, process
from serai.lib.paths import HostPaths
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError

log = logging.getLogger(__name__)

POOLS = HostPaths(state=Path(), run=Path()).pools
"""Within a host's state folder."""
GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL: agents close their journals, QEMU flushes. All of it is deleted after."""
ROUNDS = 20
"""Searches for processes: each may find the children of those that the last one killed."""
NO_GRACE = frozenset({"tgtd"})
"""tgtd ignores SIGTERM while it has targets: waiting for it would only cost the grace each time."""


async def down(name: str) -> bool:
    """Remove the lab of that name; False if there was nothing. Raises ConflictError, HostError."""
    folder = LabFolder.of(name)
    if not folder.path.is_dir():
        # Only namespaces, then: the folder was deleted by hand. Those of a lab in another parent are that lab's.
        if any(other.path != folder.path and other.name == name for other in state.standing()):
            return False
        if not _namespaces(name):
            state.unregister(folder)
            return False
    async with state.locked(folder):
        await sweep(folder)
    return True


async def sweep(folder: LabFolder, *, keep: bool = False) -> None:
    """Remove everything of the lab; the caller holds its lock. `keep`: all but the folder itself, and so the lock."""
    before = read_tolerantly(folder)
    if before is not None:
        folder.write(before.model_copy(update={"phase": Phase.ENDING}))
    groups = await _end_processes(folder, before) | _groups_of_vms(folder)
    for device in mount.loops_on(folder.path):
        mount.detach_loop(device)
    for space in _namespaces(folder.name):
        await namespace.delete(space)
    mount.unmount_below(folder.path)
    _remove_groups(groups)
    await asyncio.to_thread(_remove_pools, folder)
    if before is not None:
        _forget_context(folder, before)
    state.unregister(folder)
    await asyncio.to_thread(_delete, folder, keep=keep)


def read_tolerantly(folder: LabFolder) -> LabState | None:
    """The lab's state; None if there is none, or none that can be understood."""
    try:
        return folder.read()
    except ValueError as error:
        log.warning("the state of lab %s cannot be understood, and is not needed: %s", folder.name, error)
        return None


def _namespaces(name: str) -> list[str]:
    pattern = topology.netns_pattern(name)
    return [space for space in namespace.names(f"serai-{name}-") if pattern.fullmatch(space)]


# --- processes ---


async def _end_processes(folder: LabFolder, before: LabState | None) -> set[Path]:
    """End every process in the lab's namespaces or in its records; return the control groups that they were in."""
    groups: set[Path] = set()
    for _ in range(ROUNDS):
        found = _processes(folder, before)
        if not found:
            return groups
        for watched in found:
            groups |= _groups(watched.pid)
        await _end(found)
    left = ", ".join(f"{watched.pid} ({_program(watched.pid)})" for watched in found)
    raise HostError(f"these processes of lab {folder.name} cannot be ended: {left}", field="name", value=folder.name)


def _processes(folder: LabFolder, before: LabState | None) -> list[process.Watched]:
    # Searched again each time: a process found last time may have been creating a namespace.
    wanted = {"net": _identities(namespace.netns_path(space) for space in _namespaces(folder.name))}
    wanted["mnt"] = _identities(pin.target for pin in mount.mounts(folder.pins) if pin.kind == "nsfs")
    records = {record.pid: record.start for record in (before.processes if before is not None else [])}
    spared = _own_line()
    found = []
    for pid in set(psutil.pids()) - spared:
        try:
            watched = process.Watched(pid, os.pidfd_open(pid))
        except OSError:  # over meanwhile
            continue
        # Asked after the pidfd was opened, and alive after that: so both speak of the same process.
        recorded = pid in records and process.start_time(pid) == records[pid]
        if (recorded or _inside(pid, wanted) or _marked(pid, folder.path)) and watched.alive:
            found.append(watched)
    return found


def _own_line() -> set[int]:
    """Ourselves and our ancestors: who takes a lab down from inside it goes on to see it gone."""
    ourselves = psutil.Process()
    return {one.pid for one in (ourselves, *ourselves.parents())}


def _identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    found = set()
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def _inside(pid: int, wanted: dict[str, set[tuple[int, int]]]) -> bool:
    for kind, spaces in wanted.items():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/ns/{kind}").stat()
            if (status.st_dev, status.st_ino) in spaces:
                return True
    return False


def _marked(pid: int, folder: Path) -> bool:
    """Whether the lab's programs started it: one that fetches for them is in the machine's network, not the lab's."""
    try:
        return psutil.Process(pid).environ().get(state.ENV_MARK) == str(folder)
    except psutil.Error:
        return False


async def _end(found: list[process.Watched]) -> None:
    for watched in found:
        watched.send_signal(signal.SIGTERM)
    patient = [watched for watched in found if _program(watched.pid) not in NO_GRACE]
    with contextlib.suppress(TimeoutError):
        async with time_limit(GRACE):
            await _gone(patient)
    for watched in found:
        watched.send_signal(signal.SIGKILL)
    await _gone(found)


async def _gone(found: list[process.Watched]) -> None:
    for watched in found:
        await watched.exited()
        # Our own child would stay as a zombie; others have their own parent.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, watched.pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - does not wait


def _program(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "gone"


def _groups(pid: int) -> set[Path]:
    """The control groups of a process that are Serai's own."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if any(part.startswith("serai") for part in Path(path).parts):
                root = Path("/sys/fs/cgroup")
                found.add((root / controllers if controllers else root) / path.lstrip("/"))
    return found


def _groups_of_vms(folder: LabFolder) -> set[Path]:
    """The control groups of VMs whose QEMU and agent were both killed: nobody is in them, and nobody removed them."""
    found: set[Path] = set()
    for vm in {path.name for path in (folder.path / "hosts").glob("*/*/vms/*")}:
        for pattern in (f"serai*/{vm}", f"*/serai*/{vm}"):
            found |= set(Path("/sys/fs/cgroup").glob(pattern))
    return found


def _remove_groups(groups: set[Path]) -> None:
    for group in groups:
        # Not empty, or gone with its VM.
        with contextlib.suppress(OSError):
            group.rmdir()
            group.parent.rmdir()


# --- files ---


def _remove_pools(folder: LabFolder) -> None:
    """Take away what pools made in folders that were given to them; each host has a link to its own."""
    for link in folder.path.glob(f"hosts/*/state/{POOLS}/*"):
        if link.is_symlink():
            try:
                poolmark.purge(link.readlink(), link.name)
            except OSError as error:
                log.warning("what pool %s made in %s stays there: %s", link.name, link.readlink(), error)


def _forget_context(folder: LabFolder, before: LabState) -> None:
    """Take the lab's context out of the file it was put in; the file too, if the lab made it and nobody used it."""
    file = before.contexts
    if file is None or not file.exists():
        return
    known = contexts.load(file)
    if folder.name in known.contexts and known.contexts[folder.name].socket == folder.api_socket:
        current = known.current == folder.name
        contexts.remove(folder.name, file=file)
        if current and before.previous_context in known.contexts and before.previous_context != folder.name:
            contexts.use(str(before.previous_context), file=file)
    if before.contexts_made and not contexts.load(file).contexts:
        file.unlink()
        with contextlib.suppress(OSError):
            file.parent.rmdir()


def _delete(folder: LabFolder, *, keep: bool) -> None:
    # The state goes last: a deletion that was interrupted must still look like a lab.
    for entry in folder.path.iterdir():
        if entry.name == "lab.json":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (folder.path / "lab.json").unlink(missing_ok=True)
    if keep:
        return
    folder.path.rmdir()
    # Other labs live there, or somebody's files.
    with contextlib.suppress(OSError):
        folder.path.parent.rmdir()
