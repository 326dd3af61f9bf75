"""What a test sees of the lab from outside: journals, the kernel's word on processes and links. Nothing is asked of
Serai, so an agent or a QEMU that stands still is seen as well as one that works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from serai.lab.state import LabFolder
from serai.schema.vm import VmState

PATIENCE = 60.0
MIGRATION_PORTS = range(49152, 49216)
ESTABLISHED = "01"


async def until(condition: Callable[[], Any], what: str) -> None:
    """Look again until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


# --- journals ---


def journal(lab: str, host: str, kind: str, key: str) -> dict[str, Any] | None:
    """The newest record in a host's journal, read from its file; a line in mid-write does not count yet."""
    newest: dict[str, Any] | None = None
    try:
        content = (LabFolder.of(lab).host(host) / "state" / "journal").read_bytes().rstrip(b"\0")
    except FileNotFoundError:
        return None
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            found, name, data = json.loads(line.partition(b" ")[2])
            if (found, name) == (kind, key):
                newest = data
    return newest


def recorded(lab: str, hosts: Iterable[str], vm: str) -> str | None:
    """Why no copy of a VM runs, as some host's journal says; none if none does."""
    for host in hosts:
        record = journal(lab, host, "vm", vm)
        if record is None:
            continue
        if record["outgoing"] or record["incoming"]:
            return "it is on the move"
        if record["state"] != VmState.RUNNING and (record["reason"] or record["state"] not in ("stopped", "crashed")):
            return f"{record['state']} on {host}: {record['reason']}"
    return None


# --- processes and links ---


def received(pid: int) -> int:
    """Bytes that the host of a process has got over its migration link."""
    for line in Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth1":
            return int(counts.split()[0])
    raise AssertionError("the host has no eth1")


def states(pid: int) -> set[str]:
    """What a process's threads are at: R runs or waits for a processor, S sleeps, …"""
    stats = [(task / "stat").read_text(encoding="ascii") for task in Path(f"/proc/{pid}/task").iterdir()]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


def streaming(pid: int, *, states: Iterable[str] | None = None) -> bool:
    """A QEMU has a migration's stream open, or still waits for one. It closes it once it has loaded the state."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for line in Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        columns = line.split()
        ports = {int(address.partition(":")[2], 16) for address in columns[1:3]}
        mine = f"socket:[{columns[9]}]" in inodes
        if mine and ports & set(MIGRATION_PORTS) and (states is None or columns[3] in states):
            return True
    return False
