"""Whether guests really run on KVM: a test guest is run to its end on it.

That /dev/kvm opens proves nothing: on some machines guests crawl on it and never boot. So a guest of 64 KiB, its own
firmware, computes, does port I/O, and ends QEMU with a known code. One that crawls shows in the processor time that it
takes, which a busy machine does not lengthen: after `CPU_LIMIT` of it, a good twenty times what the guest needs, or
after `PATIENCE` by the clock, it is given up.
"""

from __future__ import annotations

import stat
import tempfile
import time
from pathlib import Path

import psutil

from serai.drivers.hypervisor.argv import BINARY
from serai.lib.process import Child, owner, spawn
from serai.lib.timeouts import time_limit
from serai.schema.host import KVM_ABILITY, Ability

KVM = Path("/dev/kvm")
READ_WRITE = stat.S_IRGRP | stat.S_IWGRP
CPU_LIMIT = 2.0
"""Seconds of processor time."""
PATIENCE = 10.0
"""Seconds by the clock, for a machine that is busy with other work."""
LOOK = 0.05
"""Seconds between two looks at the processor time."""
KNOWN_END = 33
"""isa-debug-exit turns the 0x10 that the guest writes into this exit code."""
EMULATED = "Guests run emulated (TCG): slow, but correct."


def accel_groups(accel: str) -> list[int]:
    """The group that may open /dev/kvm, for a guest that runs on it; never root's own."""
    if accel != "kvm" or not KVM.exists():
        return []
    status = KVM.stat()
    return [status.st_gid] if status.st_gid != 0 and status.st_mode & READ_WRITE == READ_WRITE else []


def firmware() -> bytes:
    """A guest of 64 KiB for 16-bit mode: counts to a million, writes 20,000 times to port 0x80, and ends."""
    code = bytes.fromhex(
        "66b940420f00"  # mov ecx, 1000000
        "6649"  # dec ecx
        "75fc"  # jnz to the line above
        "66b9204e0000"  # mov ecx, 20000
        "e680"  # out 0x80, al: an exit to the hypervisor each
        "6649"  # dec ecx
        "75fa"  # jnz to the out
        "baf400"  # mov dx, 0xf4
        "b010"  # mov al, 0x10
        "ee"  # out dx, al: QEMU ends with KNOWN_END
        "f4"  # hlt
    )
    image = bytearray(b"\xf4" * 0x10000)
    image[0xFF00 : 0xFF00 + len(code)] = code
    image[0xFFF0:0xFFF3] = b"\xe9\x0d\xff"  # where a processor starts: jmp to 0xff00
    return bytes(image)


async def probe_kvm(user: str | None) -> Ability:
    """Run the test guest on KVM; only its known end says that guests run on it. What went wrong is in the detail."""
    if not KVM.exists():
        remedy = "Enable virtualization in the firmware and load kvm_intel or kvm_amd."
        return _missing("there is no /dev/kvm", remedy)
    try:
        code, seconds, words = await run_guest("kvm", user, PATIENCE, cpu_limit=CPU_LIMIT)
    except OSError as error:
        return _missing(f"the test guest could not be started ({error})", "See that QEMU can be executed.")
    if code == KNOWN_END:
        return Ability(name=KVM_ABILITY, found=True, detail=f"a test guest ran to its end in {seconds:.2f} s")
    if code is None:
        remedy = "On a virtual machine: enable nested virtualization on its host. The next agent start tries again."
        return _missing(f"/dev/kvm is there, but a test guest did not end on it within {seconds:.0f} s", remedy)
    remedy = "On a virtual machine: look at nested virtualization on its host."
    if "Permission denied" in words:
        remedy = f"Give QEMU's user {user} the right to it: 'chgrp kvm /dev/kvm; chmod 660 /dev/kvm'."
    return _missing(f"QEMU cannot use /dev/kvm ({words or f'code {code}'})", remedy)


def _missing(why: str, remedy: str) -> Ability:
    return Ability(name=KVM_ABILITY, found=False, detail=why, remedy=f"{EMULATED} {remedy}")


async def run_guest(
    accel: str, user: str | None, patience: float, *, cpu_limit: float = float("inf"), guest: bytes | None = None
) -> tuple[int | None, float, str]:
    """Run a guest, by default the test guest, until its end or a limit (both in seconds).

    Returns QEMU's exit code (None: it did not end), how long it ran by the clock, and QEMU's last words.
    """
    with tempfile.TemporaryDirectory(prefix="serai-probe-") as name:
        folder = Path(name)
        # QEMU runs as another user, and reads its firmware by name.
        folder.chmod(0o711)
        image = folder / "guest.bin"
        image.write_bytes(guest or firmware())
        image.chmod(0o644)
        argv = [BINARY, "-machine", "q35", "-accel", accel, "-cpu", "max", "-m", "16", "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-bios", str(image), "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        uid, gid = owner(user)
        began = time.monotonic()
        child = await spawn(argv, user=uid, group=gid, extra_groups=accel_groups(accel), stderr=folder / "log", cwd="/")
        try:
            code = await _end(child, patience, cpu_limit)
        finally:
            await child.kill()
        words = (folder / "log").read_text(errors="replace").strip().splitlines()
        return code, time.monotonic() - began, words[-1] if words else ""


async def _end(child: Child, patience: float, cpu_limit: float) -> int | None:
    try:
        async with time_limit(patience):
            while _processor_time(child.pid) < cpu_limit:
                try:
                    async with time_limit(LOOK):
                        return await child.wait()
                except TimeoutError:
                    continue
    except TimeoutError:
        pass
    return child.returncode


def _processor_time(pid: int) -> float:
    """Seconds of it that a process's threads have taken, in the guest and for it; 0 once it is gone."""
    try:
        spent = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return spent.user + spent.system
