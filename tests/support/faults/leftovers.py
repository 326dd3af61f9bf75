"""What VMs that were deleted have left: in the API, in processes, links, control groups and files of the hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.support.lab import Lab

from serai.lab.state import LabFolder
from serai.lib import process

KEPT = ("journal",)
"""Files in which deleted VMs are remembered on purpose have their names in the content, not in their own."""


async def leftovers(lab: Lab, vms: Sequence[str]) -> list[str]:
    """One line for each thing; none if nothing is left."""
    folder = LabFolder.of(lab.name)
    plan = folder.load().plan
    found = [f"API: VM {row.name}" async for row in lab.client.items("vm.list")]
    found += [f"API: volume {row.name} ({row.status.state})" async for row in lab.client.items("volume.list")]
    for vm in vms:
        found += [f"control group {path}" for path in Path("/sys/fs/cgroup").glob(f"**/serai*/{vm}")]
        found += [f"QEMU {pid} on {host}" for host, pids in lab.qemus_of(vm).items() for pid in pids]
        found += [f"file {path}" for path in (folder.path / "hosts").rglob(f"*{vm}*")]
    for host in plan.hosts:
        shown = await process.run(["ip", "-n", plan.netns(host), "-br", "link"])
        found += [f"link {line.split()[0]} on {host}" for line in shown.text.splitlines() if line.startswith("sv")]
        found += [f"volume {path} on {host}" for path in folder.host(host).rglob("*.raw")]
    return found
