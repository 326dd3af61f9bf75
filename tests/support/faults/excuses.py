"""What the test itself has stopped or killed, and so may excuse that no copy of a VM runs and no journal says why.

A QEMU that was frozen, and for a while one that was thawed. The agent of a host whose journal says that the VM runs
there: it cannot notice what it does not live to see. And where no journal knows the VM at all, whatever is on the way
from the controller to the hosts.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.looking import journal, recorded

from serai.lab.state import LabFolder
from serai.schema.vm import VmState

GRACE = 30.0
"""Seconds until what was started again, or goes on, has seen what happened meanwhile: on a busy machine."""
FRESH = 0.05
"""Seconds for which one look at the machine's processes serves all VMs."""


class Excuses:
    """Read by the threads of the watches, written by the player."""

    def __init__(self, lab: str) -> None:
        self._lab = lab
        self._hosts = LabFolder.of(lab).load().plan.hosts
        self._ill: dict[str, float | None] = {}
        """By program or VM: none while it is down or frozen, else when it was well again."""
        self._seen: dict[str, set[int]] = {}
        self._looked = 0.0

    def ill(self, what: str) -> None:
        """A program was killed or frozen, or a VM's QEMU frozen."""
        self._ill[what] = None

    def well(self, what: str) -> None:
        """It works again, or soon will."""
        self._ill[what] = time.monotonic()

    def all_ill(self) -> list[str]:
        """What was not made well yet."""
        return [what for what, since in self._ill.items() if since is None]

    def copies(self, vm: str) -> set[int]:
        """Pids of all QEMUs of a VM."""
        if time.monotonic() > self._looked + FRESH:
            self._looked, self._seen = time.monotonic(), _qemus()
        return set(self._seen.get(vm, ()))

    def why_none_runs(self, vm: str) -> str | None:
        """The reason in some host's journal, or the test's own."""
        if self._was_ill(vm):
            return "the test has frozen its QEMU"
        records = {host: journal(self._lab, host, "vm", vm) for host in self._hosts}
        for host, record in records.items():
            if record is not None and record["state"] == VmState.RUNNING and self._was_ill(f"agent {host}"):
                return f"the test has stopped the agent of {host}"
        if not any(records.values()) and any(map(self._was_ill, list(self._ill))):
            return "no host has it, and the test has stopped what would bring it to one"
        return recorded(self._lab, self._hosts, vm)

    def _was_ill(self, what: str) -> bool:
        if what not in self._ill:
            return False
        since = self._ill[what]
        return since is None or time.monotonic() < since + GRACE


def _qemus() -> dict[str, set[int]]:
    """VM to the pids of its QEMUs, anywhere on the machine: an id is one VM's alone."""
    found: dict[str, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].startswith(b"qemu-system"):
            names = [word for word in words if word.startswith(b"guest=")]
            for name in names:
                found.setdefault(name[6:].partition(b",")[0].decode(), set()).add(int(entry.name))
    return found
