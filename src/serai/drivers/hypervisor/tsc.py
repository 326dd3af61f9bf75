"""How fast the processor's time-stamp counter runs.

An emulated guest (TCG) reads the machine's own counter. Its kernel finds out the counter's rate with the PIT, and on a
busy machine gives up; it then relies on the PIT's interrupt, which a microvm with ACPI never gets (seen with QEMU 10.0
and Linux 6.1), and stands still early in its boot. Told the rate, it needs no PIT. No file says the rate: the kernel's
log may, and /proc/cpuinfo shows the clock of the moment, which is another.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import platform
import time

log = logging.getLogger(__name__)

PERIOD = 0.05
"""Seconds: the two clocks are read within a microsecond of each other, so the error is some 20 in a million."""
TRIES = 3
READ_COUNTER = bytes.fromhex(
    "0f31"  # rdtsc
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)


def measure_khz() -> int | None:
    """The counter's rate in kHz; None where it cannot be read (another architecture, or no code may be made)."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        log.info("the time-stamp counter cannot be read: %s", error)
        return None
    page.write(READ_COUNTER)
    place = ctypes.c_char.from_buffer(page)
    try:
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
        begin = _moment(read)
        time.sleep(PERIOD)
        end = _moment(read)
    finally:
        del place
        page.close()
    return round((end[0] - begin[0]) / (end[1] - begin[1]) * 1e6)


def _moment(read: ctypes._CFunctionType) -> tuple[int, int]:
    """The counter and the clock (ns) at one moment: the best of some tries, since we may be interrupted in between."""
    best: tuple[int, int, int] | None = None
    for _ in range(TRIES):
        before = time.monotonic_ns()
        ticks = read()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, ticks, (before + after) // 2)
    assert best is not None
    return best[1], best[2]
