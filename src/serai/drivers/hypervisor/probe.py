"""What QEMU on this machine can do, found out by asking it and, for KVM, by running a guest to its end.

That /dev/kvm opens proves nothing: on some machines guests crawl on it and never boot. So a guest of 64 KiB, its own
firmware, computes, does port I/O, and ends QEMU with a known code; where that takes longer than `KVM_TIMEOUT`, KVM is
not used. Everything is asked of QEMU itself; a version number decides nothing. What was found is remembered in the
state folder until the kernel, the processor, /dev/kvm's rights or QEMU's binary change.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor.argv import SANDBOX, Features
from serai.drivers.hypervisor.base import HypervisorFacts, QmpError
from serai.drivers.hypervisor.identity import KVM, accel_groups, owner
from serai.drivers.hypervisor.qmp import Qmp
from serai.lib import atomicfile
from serai.lib.process import ProgramMissingError, spawn
from serai.schema.errors import SeraiError
from serai.schema.host import Ability

log = logging.getLogger(__name__)

BINARY = "qemu-system-x86_64"
USER = "serai-qemu"
MEMORY_FILE = "hypervisor.json"
FORMAT = 1
KVM_TIMEOUT = 2.0
KNOWN_END = 33
"""isa-debug-exit turns the 0x10 that the guest writes into this exit code."""
Q35_OPTIONS = ("vmport", "hpet", "sata", "smbus", "smm")
NEEDED_CAPABILITIES = ("events", "pause-before-switchover")


@dataclass(frozen=True, slots=True)
class Findings:
    """The facts for others, and what the command line depends on."""

    facts: HypervisorFacts
    features: Features


async def probe() -> list[Ability]:
    """For `serai doctor`: look afresh, remember nothing."""
    return (await _look(USER)).facts.abilities


async def find_out(state_dir: Path, user: str | None) -> Findings:
    """What was remembered, or else looked for now and remembered. Raises UnsupportedError without a QEMU."""
    memory = state_dir / MEMORY_FILE
    key = await asyncio.to_thread(_key, user)
    known = await asyncio.to_thread(_recall, memory, key)
    if known is not None:
        return known
    findings = await _look(user)
    if not findings.facts.version:
        raise ProgramMissingError(findings.facts.abilities[0].detail, remedy=findings.facts.abilities[0].remedy)
    for ability in findings.facts.abilities:
        if not ability.found:
            log.warning("%s: %s. %s", ability.name, ability.detail, ability.remedy)
    await asyncio.to_thread(_remember, memory, key, findings)
    return findings


def _key(user: str | None) -> str:
    binary = shutil.which(BINARY)
    parts: list[object] = [FORMAT, platform.release(), _cpu()[0], user]
    for path in (binary, str(KVM)):
        if path is None or not Path(path).exists():
            parts.append("none")
            continue
        status = Path(path).stat()
        parts += [path, status.st_mode, status.st_gid]
        # A device node's times change with each boot, a binary's with each upgrade.
        parts += [status.st_size, status.st_mtime_ns] if path == binary else []
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _recall(memory: Path, key: str) -> Findings | None:
    try:
        document = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if document.get("key") != key:
        return None
    facts = document["facts"]
    facts["abilities"] = [Ability.model_validate(ability) for ability in facts["abilities"]]
    features = document["features"]
    features["q35_options"] = frozenset(features["q35_options"])
    return Findings(HypervisorFacts(**facts), Features(**features))


def _remember(memory: Path, key: str, findings: Findings) -> None:
    facts = dataclasses.asdict(findings.facts)
    facts["abilities"] = [ability.model_dump() for ability in findings.facts.abilities]
    features = dataclasses.asdict(findings.features)
    features["q35_options"] = sorted(findings.features.q35_options)
    memory.parent.mkdir(parents=True, exist_ok=True)
    atomicfile.write_text(memory, json.dumps({"key": key, "facts": facts, "features": features}, indent=1))


async def _look(user: str | None) -> Findings:
    model, flags = await asyncio.to_thread(_cpu)
    try:
        said = await _ask(user)
    except SeraiError as error:
        missing = Ability(
            name="qemu",
            found=False,
            detail=error.info.message,
            remedy=error.info.remedy or "Install it: 'apt install qemu-system-x86'.",
            required=True,
        )
        return Findings(HypervisorFacts("", [], [], "", model, flags, [missing]), Features())
    accel = await kvm(user)
    abilities = [
        Ability(name="qemu", found=True, detail=f"QEMU {said.version}", required=True),
        _sandbox(said),
        *_migration(said),
        accel,
        _postcopy(said),
    ]
    facts = HypervisorFacts(
        version=said.version,
        machine_types=said.machines,
        migration_capabilities=said.capabilities,
        accel="kvm" if accel.found else "tcg",
        cpu_model=model,
        cpu_flags=flags,
        abilities=abilities,
    )
    options = frozenset(said.q35_properties & set(Q35_OPTIONS))
    return Findings(facts, Features(BINARY, "suppress-vmdesc" in said.q35_properties, said.sandbox, options))


@dataclass(frozen=True, slots=True)
class _Said:
    version: str
    machines: list[str]
    capabilities: list[str]
    q35_properties: set[str]
    sandbox: bool


async def _ask(user: str | None) -> _Said:
    sandbox = True
    try:
        answers = await _answers(user, ["-sandbox", SANDBOX])
    except ProgramMissingError:
        raise
    except SeraiError as error:
        log.info("QEMU does not start in its sandbox: %s", error)
        sandbox = False
        answers = await _answers(user, [])
    version, machines, capabilities, properties = answers
    numbers = version["qemu"]
    return _Said(
        version=f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}",
        machines=_machine_types(machines),
        capabilities=sorted(str(item["capability"]) for item in capabilities),
        q35_properties={str(item["name"]) for item in properties},
        sandbox=sandbox,
    )


async def _answers(user: str | None, options: list[str]) -> tuple[Any, Any, Any, Any]:
    async with _idle_qemu(user, options) as qmp:
        machines = await qmp.execute("query-machines")
        newest = _machine_types(machines)
        properties: Any = []
        if newest:
            with contextlib.suppress(QmpError):
                properties = await qmp.execute("qom-list-properties", {"typename": f"{newest[0]}-machine"})
        version = await qmp.execute("query-version")
        return version, machines, await qmp.execute("query-migrate-capabilities"), properties


def _machine_types(machines: list[dict[str, Any]]) -> list[str]:
    """Those that Serai uses, the newest first, without what QEMU is about to drop."""
    names = {str(item["name"]) for item in machines if not item.get("deprecated")}
    q35 = [name for name in names if name.startswith("pc-q35-")]
    q35.sort(key=lambda name: [int(part) for part in name.removeprefix("pc-q35-").split(".")], reverse=True)
    return q35 + (["microvm"] if "microvm" in names else [])


@asynccontextmanager
async def _idle_qemu(user: str | None, options: list[str]) -> AsyncIterator[Qmp]:
    """A QEMU without a machine, to ask."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serai-probe-")))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(folder / "qmp.sock"))
            listener.listen(1)
            argv = [BINARY, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", *options]
            argv += ["-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"]
            argv += ["-mon", "chardev=qmp,mode=control"]
            child = await spawn(
                argv, user=user, group=owner(user)[1], pass_fds=[listener.fileno()], stderr=folder / "log"
            )
        qmp = Qmp("(probe)", folder / "qmp.sock", lambda _event: None)
        try:
            await qmp.connect()
            yield qmp
        finally:
            await qmp.close()
            await child.kill()


def _sandbox(said: _Said) -> Ability:
    remedy = "Use a QEMU built with seccomp; without it an attacker who breaks out of a guest can do more."
    detail = "QEMU starts with all denials" if said.sandbox else "QEMU does not start in its sandbox"
    return Ability(name="qemu-sandbox", found=said.sandbox, detail=detail, remedy="" if said.sandbox else remedy)


def _migration(said: _Said) -> list[Ability]:
    lacking = [name for name in NEEDED_CAPABILITIES if name not in said.capabilities]
    if "suppress-vmdesc" not in said.q35_properties:
        lacking.append("suppress-vmdesc")
    detail = f"QEMU has no {', '.join(lacking)}" if lacking else "QEMU has what a move needs"
    remedy = "Install QEMU 7.2 or newer." if lacking else ""
    return [Ability(name="live-migration", found=not lacking, detail=detail, remedy=remedy, required=True)]


def _postcopy(said: _Said) -> Ability:
    found = "postcopy-ram" in said.capabilities and Path("/dev/userfaultfd").exists()
    detail = "QEMU has it, and the kernel userfaultfd" if found else "no /dev/userfaultfd, or not in this QEMU"
    return Ability(name="postcopy", found=found, detail=detail, remedy="" if found else "Needs Linux 6.1 or newer.")


# --- KVM --------------------------------------------------------------------------------------------------------------


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


async def kvm(user: str | None) -> Ability:
    """Whether guests really run on KVM."""
    name = "kvm"
    if not KVM.exists():
        remedy = "Enable virtualization in the firmware and load kvm_intel or kvm_amd; guests run emulated without it."
        return Ability(name=name, found=False, detail="there is no /dev/kvm", remedy=remedy)
    try:
        code, seconds, words = await run_guest("kvm", user, KVM_TIMEOUT)
    except OSError as error:
        return Ability(name=name, found=False, detail=f"the test guest could not be started: {error}")
    if code == KNOWN_END:
        return Ability(name=name, found=True, detail=f"a test guest ran to its end in {seconds:.2f} s")
    if code is None:
        detail = f"/dev/kvm is there, but a test guest did not end within {KVM_TIMEOUT:g} s: guests run emulated (TCG)"
        remedy = "Slow, but correct. On a virtual machine: enable nested virtualization on its host."
    else:
        detail = f"QEMU cannot use /dev/kvm ({words or f'code {code}'}): guests run emulated (TCG)"
        remedy = "Slow, but correct. On a virtual machine: look at nested virtualization on its host."
        if "Permission denied" in words:
            remedy = f"Give QEMU's user {user} the right to it: 'chgrp kvm /dev/kvm; chmod 660 /dev/kvm'."
    return Ability(name=name, found=False, detail=detail, remedy=remedy)


async def run_guest(accel: str, user: str | None, timeout: float) -> tuple[int | None, float, str]:
    """Run the test guest; QEMU's exit code (None: it did not end in time), seconds, and QEMU's last words."""
    with tempfile.TemporaryDirectory(prefix="serai-probe-") as name:
        folder = Path(name)
        # QEMU runs as another user, and reads its firmware by name.
        folder.chmod(0o711)
        image = folder / "guest.bin"
        image.write_bytes(firmware())
        image.chmod(0o644)
        argv = [BINARY, "-machine", "q35", "-accel", accel, "-cpu", "max", "-m", "16", "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-bios", str(image), "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        uid, gid = owner(user)
        began = time.monotonic()
        child = await spawn(argv, user=uid, group=gid, extra_groups=accel_groups(accel), stderr=folder / "log", cwd="/")
        try:
            async with asyncio.timeout(timeout):
                code: int | None = await child.wait()
        except TimeoutError:
            code = None
        finally:
            await child.kill()
        words = (folder / "log").read_text(errors="replace").strip().splitlines()
        return code, time.monotonic() - began, words[-1] if words else ""


def _cpu() -> tuple[str, list[str]]:
    """Model name and flags of the first processor."""
    model, flags = platform.machine(), []
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = value.split()
            break
    return model, flags
