"""GRUB for BIOS guests, put into a raw disk image by hand: no loop device, no mounted file system, no root.

`grub-install` wants a block device. What it does for a BIOS is little: the 440 bytes of `boot.img` go into sector 0 in
front of the partition table, and `core.img` from sector 1 into the gap before the first partition. Both were assembled
to find their successor exactly there (`kernel_sector` of boot.img is 1, the first block list of core.img starts at
sector 2), so nothing in them has to be changed. The prefix names no disk, so GRUB takes the one the BIOS booted.
"""

from __future__ import annotations

import struct
from pathlib import Path

from serai.lib.process import run
from serai.schema.errors import HostError, UnsupportedError

MODULES = Path("/usr/lib/grub/i386-pc")
SECTOR = 512
FIRST_SECTOR = 2048
"""Where the partition begins: at 1 MiB, as everyone aligns it."""
BOOT_CODE = 440
"""Bytes of sector 0 before the disk's signature and the partition table."""
PREFIX = "(,msdos1)/boot/grub"
NEEDED = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "echo", "serial", "terminal", "test", "boot")


async def install(disk: Path, scratch: Path) -> None:
    """Make a raw disk image bootable: an MBR with its first partition (ext4) at 1 MiB, /boot/grub/grub.cfg in it.

    Raises UnsupportedError (GRUB is not installed), HostError.
    """
    boot = MODULES / "boot.img"
    if not boot.exists():
        raise UnsupportedError(
            "GRUB for BIOS guests is not installed",
            field="image",
            remedy="Install the packages grub-pc-bin and grub-common.",
        )
    core = scratch / "core.img"
    await run(["grub-mkimage", "-d", str(MODULES), "-O", "i386-pc", "-p", PREFIX, "-o", str(core), *NEEDED], timeout=60)
    place(disk, boot.read_bytes(), core.read_bytes())


def place(disk: Path, boot: bytes, core: bytes) -> None:
    """Write the two parts of GRUB where they look for each other. Raises HostError if they would not find or fit."""
    if len(boot) != SECTOR or struct.unpack_from("<Q", boot, 0x5C)[0] != 1:
        raise HostError("this GRUB's boot.img does not look for its core at sector 1", field="image")
    if struct.unpack_from("<Q", core, SECTOR - 12)[0] != 2:
        raise HostError("this GRUB's core.img does not look for its rest at sector 2", field="image")
    if len(core) > (FIRST_SECTOR - 1) * SECTOR:
        raise HostError(f"GRUB's core of {len(core)} bytes does not fit before the first partition", field="image")
    with disk.open("r+b") as file:
        file.write(boot[:BOOT_CODE])
        file.seek(SECTOR)
        file.write(core)
