"""What is kept of a lab whose test failed, before it is taken away."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.support.invariant import vcpu_time
from tests.support.lab import Lab, serai_program

from serai.lab.state import LabFolder
from serai.lib import process
from serai.schema.errors import SeraiError

KEPT = Path(__file__).parents[3] / "build" / "random-faults"
FILES = ("log/*", "lab.json", "ctl/**/*.db*", "hosts/*/state/journal*", "hosts/**/*.log")


async def keep(log: Sequence[str], lab: Lab, seed: int, error: BaseException) -> Path:
    """Copy logs, journals and the database, and write down how the VMs are; return the folder."""
    folder = LabFolder.of(lab.name).path
    place = KEPT / f"seed-{seed}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for pattern in FILES:
        for file in folder.glob(pattern):
            if file.is_file():
                target = place / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    place.mkdir(parents=True, exist_ok=True)
    lines = [*log, "", *traceback.format_exception(error)]
    (place / "actions.log").write_text("\n".join(lines), encoding="utf-8")
    found: list[str] = []
    try:
        await _look(lab, found)
    except Exception:  # noqa: BLE001 - the failure that brought us here counts, not what cannot be seen of it
        found.append(traceback.format_exc())
    (place / "state.txt").write_text("\n".join(found), encoding="utf-8")
    return place


async def _look(lab: Lab, found: list[str]) -> None:
    """Add jobs and VMs as the controller shows them, QEMUs, links, and what the guests' consoles say."""
    serai = [*serai_program(), "--context", lab.name]
    for noun in ("job", "vm", "volume", "host"):
        found.append(await _said([*serai, noun, "list", "-o", "yaml"]))
    plan = LabFolder.of(lab.name).load().plan
    for host in plan.hosts:
        found.append(await _said(["ip", "-n", plan.netns(host), "-d", "-s", "link"]))
    for name in lab.vms:
        with contextlib.suppress(SeraiError):
            vm = await lab.vm(name)
            for host, pids in lab.qemus(vm).items():
                found += [await _busy(f"QEMU {pid} of {name} on {host}", pid) for pid in pids]
        found.append(await _said(["timeout", "5", *serai, "vm", "console", name], b"\n"))


async def _busy(what: str, pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    before = vcpu_time(pid)
    await asyncio.sleep(1)
    return f"{what}: its vCPUs ran for {(vcpu_time(pid) - before) / 1e6:.1f} ms within a second\n{status}"


async def _said(argv: list[str], given: bytes | None = None) -> str:
    done = await process.run(argv, check=False, timeout=30, input=given)
    return f"== {' '.join(argv)}\n{done.text}{done.stderr.decode(errors='replace')}"
