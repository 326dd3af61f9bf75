"""Guests of one boot sector: each says `R` on its console once it runs, and then does one thing.

They wait for the power button, power themselves off, panic, write to their disk, or have filled their memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from serai.drivers.hypervisor.machine import QemuMachine

SAY_READY = "baf803 b052 ee"  # mov dx, 0x3f8; mov al, 'R'; out dx, al
POWER_OFF = "ba0406 b80020 ef f4 ebfd"  # out 0x604, 0x2000: ACPI's S5; hlt; jmp
GUESTS = {
    # out 0x602, 0x100 (enable the power button); say so; sti; hlt; in ax, 0x600; test ah, 1; jz to hlt; then power off
    "button": f"ba0206 b80001 ef {SAY_READY} fb f4 ba0006 ed f6c401 74f6 {POWER_OFF}",
    "off": f"{SAY_READY} {POWER_OFF}",
    # Writes a sector of the first disk that was never written before, by its BIOS, and says so.
    "writer": f"{SAY_READY} 31c0 8ec0 bb007c b80103 b90a00 ba8000 cd13 baf803 b057 ee f4 ebfd",
    "panic": f"{SAY_READY} ba0505 b001 ee f4 ebfd",  # pvpanic's port
}
FILLED_FROM = 1 << 20


def boot_sector(code: str) -> bytes:
    return bytes.fromhex(code).ljust(510, b"\0") + b"\x55\xaa"


def filler(size: int) -> str:
    """A guest that has filled so many bytes of its memory, from 1 MiB on, when it says `R`: no page is a zero page."""
    count = (size // 4).to_bytes(4, "little").hex()
    return (
        "fa 31c0 8ed8 0f0116587c"  # cli; xor ax, ax; mov ds, ax; lgdt [0x7c58]
        "0f20c0 0c01 0f22c0 ea177c0800"  # mov eax, cr0; or al, 1; mov cr0, eax; jmp 8:0x7c17
        f"66b81000 8ed8 8ec0 bf00001000 b9{count}"  # mov ax, 0x10; mov ds, ax; mov es, ax; mov edi, 1M; mov ecx, count
        "b85a5a5a5a fc f3ab"  # mov eax, 0x5a5a5a5a; cld; rep stosd
        "66baf803 b052 ee f4 ebfd"  # mov dx, 0x3f8; mov al, 'R'; out dx, al; hlt; jmp to hlt
        "0000000000 0000000000000000"  # up to 0x40; then the descriptors: none, code, data
        "ffff0000009acf00 ffff00000092cf00"
        "1700407c0000"  # 0x58: their limit and address
    )


@contextlib.asynccontextmanager
async def says_ready(machine: QemuMachine) -> AsyncIterator[None]:
    """On leaving, wait until the guest has said that it runs. Enter it before it may."""
    reader, writer = await asyncio.open_unix_connection(str(machine.run_dir / "console.sock"))
    try:
        yield
        await reader.readuntil(b"R")
    finally:
        writer.close()
        await writer.wait_closed()
