"""What this machine can do for storage, found out by trying; nothing is changed and nothing is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serai.drivers.storage.directory import reflinks
from serai.lib.paths import HostPaths
from serai.lib.process import Completed, ProcessError, ProgramMissingError, run
from serai.schema.host import Ability

PROBE_TIMEOUT = 10.0


async def probe(folder: Path | None = None) -> list[Ability]:
    """Return storage's abilities; `folder` is where pools would be (its nearest parent that exists is tried)."""
    place = HostPaths().pools if folder is None else folder
    return [await target(), await initiator(), await image_tool(), await reflink(place)]


async def target() -> Ability:
    """Whether volumes can be exported."""
    remedy = "Install it: 'apt install tgt'. Without it volumes serve only VMs on their own host."
    done = await _try("tgtd", "--version")
    if done is None or done.returncode != 0:
        return Ability(name="iscsi-target", found=False, detail="tgtd is not installed", remedy=remedy, required=True)
    return Ability(name="iscsi-target", found=True, detail=f"tgtd {done.text.strip()}", required=True)


async def initiator() -> Ability:
    """Whether QEMU can open exported volumes: its iSCSI driver is a module in a package of its own."""
    name = "iscsi-initiator"
    # An address without a host: the driver, if it is there, complains about the address; without it, QEMU does not know
    # the protocol. Nothing goes over the network.
    done = await _try("qemu-img", "info", "iscsi://")
    if done is not None and b"parse URL" in done.stderr:
        return Ability(name=name, found=True, detail="QEMU opens iSCSI volumes (libiscsi)", required=True)
    reason = "qemu-img is not installed" if done is None else done.stderr.decode(errors="replace").strip()
    remedy = "Install it: 'apt install qemu-block-extra'."
    return Ability(name=name, found=False, detail=reason, remedy=remedy, required=True)


async def image_tool() -> Ability:
    """Whether images can be read and written."""
    done = await _try("qemu-img", "--version")
    if done is None or done.returncode != 0:
        remedy = "Install it: 'apt install qemu-utils'."
        return Ability(name="qemu-img", found=False, detail="not installed", remedy=remedy, required=True)
    return Ability(name="qemu-img", found=True, detail=done.text.splitlines()[0], required=True)


async def reflink(folder: Path) -> Ability:
    """Whether copies in a folder are instant and share their blocks."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        found = await asyncio.to_thread(reflinks, place)
    except OSError as error:
        detail = f"{place} cannot be written: {error.strerror}"
        return Ability(name="reflink", found=False, detail=detail, remedy="Choose a writable folder.")
    if found:
        return Ability(name="reflink", found=True, detail=f"copies in {place} share their blocks")
    remedy = "Put pools on XFS or Btrfs to have volumes cloned at once; without it they are copied."
    return Ability(name="reflink", found=False, detail=f"the file system of {place} cannot share blocks", remedy=remedy)


async def _try(*argv: str) -> Completed | None:
    """Run a program; None if it is not there or hangs."""
    try:
        return await run(argv, timeout=PROBE_TIMEOUT, check=False)
    except (ProgramMissingError, ProcessError):
        return None
