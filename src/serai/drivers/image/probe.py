"""What this machine can do for images, found out by asking the programs; nothing is changed and nothing is left behind.

Without these a host still runs VMs from images that other hosts built; only cloud-init seeds are needed everywhere.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
from dataclasses import dataclass

from serai.drivers.image import grub
from serai.drivers.image.packages import KERNEL, kernel_package
from serai.drivers.image.tiny import BUSYBOX
from serai.lib.process import ProcessError, ProgramMissingError, run
from serai.schema.errors import SeraiError
from serai.schema.host import Ability

PROBE_TIMEOUT = 10.0


@dataclass(frozen=True)
class Tool:
    """A program, how it tells its version, the package that has it, and what is lost without it."""

    program: str
    version: tuple[str, ...]
    package: str
    use: str
    required: bool = False


TOOLS = (
    Tool("xorriso", ("--version",), "xorriso", "cloud-init seeds", required=True),
    Tool("qemu-img", ("--version",), "qemu-utils", "image conversion and checks", required=True),
    Tool("mmdebstrap", ("--version",), "mmdebstrap", "the Debian guest"),
    Tool("mke2fs", ("-V",), "e2fsprogs", "the Debian guest"),
    Tool("gcc", ("--version",), "gcc", "the tiny guest"),
    Tool("cpio", ("--version",), "cpio", "the tiny guest"),
    Tool("modinfo", ("--version",), "kmod", "the tiny guest"),
)


async def probe() -> list[Ability]:
    """Return the abilities of images, each with what to install where it is missing."""
    found = await asyncio.gather(*(_tool(tool) for tool in TOOLS))
    return [*found, await _busybox(), _grub(), await _kernel()]


async def _tool(tool: Tool) -> Ability:
    remedy = f"Install it for {tool.use}: 'apt install {tool.package}'."
    try:
        done = await run([tool.program, *tool.version], timeout=PROBE_TIMEOUT)
    except ProgramMissingError:
        detail = f"not installed: no {tool.use}"
        return Ability(name=tool.program, found=False, detail=detail, remedy=remedy, required=tool.required)
    except ProcessError as error:
        return Ability(name=tool.program, found=False, detail=str(error), remedy=remedy, required=tool.required)
    said = (done.text or done.stderr.decode(errors="replace")).splitlines()
    return Ability(name=tool.program, found=True, detail=said[0] if said else "", required=tool.required)


async def _busybox() -> Ability:
    remedy = "Install it for the tiny guest: 'apt install busybox-static'."
    try:
        program = await asyncio.to_thread(BUSYBOX.read_bytes)
    except FileNotFoundError:
        return Ability(name="busybox-static", found=False, detail="not installed: no tiny guest", remedy=remedy)
    if _interpreted(program):
        # The initramfs has no libraries, so a dynamically linked busybox could not even start there.
        return Ability(name="busybox-static", found=False, detail=f"{BUSYBOX} needs shared libraries", remedy=remedy)
    return Ability(name="busybox-static", found=True, detail=str(BUSYBOX))


def _interpreted(program: bytes) -> bool:
    """Whether a 64-bit ELF program asks for a dynamic linker (it has a segment of type PT_INTERP)."""
    if program[:5] != b"\x7fELF\x02":
        return True
    offset = struct.unpack_from("<Q", program, 32)[0]
    size, count = struct.unpack_from("<HH", program, 54)
    return any(struct.unpack_from("<I", program, offset + size * index)[0] == 3 for index in range(count))


def _grub() -> Ability:
    if shutil.which("grub-mkimage") and (grub.MODULES / "boot.img").exists():
        return Ability(name="grub-pc-bin", found=True, detail=str(grub.MODULES))
    remedy = "Install it for the Debian guest: 'apt install grub-pc-bin grub-common'."
    return Ability(name="grub-pc-bin", found=False, detail="not installed: no Debian guest", remedy=remedy)


async def _kernel() -> Ability:
    name = "cloud-kernel"
    try:
        package, version = await kernel_package()
    except ProgramMissingError:
        remedy = "Build images on a Debian machine, or import them."
        return Ability(name=name, found=False, detail="there is no apt on this machine", remedy=remedy)
    except SeraiError as error:
        detail, remedy = error.info.message, error.info.remedy or f"Make {KERNEL} known to apt."
        return Ability(name=name, found=False, detail=detail, remedy=remedy)
    return Ability(name=name, found=True, detail=f"{package} {version}")
