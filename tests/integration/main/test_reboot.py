"""A host's reboot, as far as a process can see it: agent and QEMUs gone at once, and another boot id of the kernel."""

from __future__ import annotations

import os
import signal

from tests.support.lab import Lab

from serai.host.journal import Journal
from serai.lab.state import LabFolder
from serai.lib.process import start_time
from serai.schema.vm import VmState

HOST = "h2"


def forget_the_boot(lab: Lab) -> None:
    journal = Journal.open(LabFolder.of(lab.name).host(HOST) / "state" / "journal")
    try:
        assert journal.get("machine", "boot") is not None
        journal.append("machine", "boot", {"id": "the boot before"})
    finally:
        journal.close()


async def test_after_a_reboot_vms_start_in_their_order(lab: Lab) -> None:
    second = await lab.create(host=HOST, up=False, autostart=True, autostart_order=2)
    first = await lab.create(host=HOST, up=False, autostart=True, autostart_order=1)
    manual = await lab.create(host=HOST, up=False, autostart=False)
    await lab.kill(f"agent {HOST}")
    for vm in (first, second, manual):
        for pid in lab.qemus(vm)[HOST]:
            os.kill(pid, signal.SIGKILL)
    forget_the_boot(lab)
    await lab.restart(f"agent {HOST}")
    await lab.online(HOST)
    found = []
    for vm in (first, second):
        await lab.guest(vm).up()
        after = await lab.until(vm.name, lambda now: now.status.state is VmState.RUNNING)
        assert after.status.host == HOST
        (pid,) = lab.qemus(vm)[HOST]
        found.append(start_time(pid) or 0)
    assert found == sorted(found) and all(found)
    after = await lab.until(manual.name, lambda now: now.status.state is VmState.CRASHED)
    assert after.status.reason == "its host was rebooted"
    assert lab.qemus(manual)[HOST] == []
