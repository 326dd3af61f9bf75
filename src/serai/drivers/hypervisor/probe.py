"""What QEMU on this machine can do, found out by asking it and, for KVM, by running a guest to its end (kvm.py).

Everything is asked of QEMU itself; a version number decides nothing. That it has no sandbox is believed only of a QEMU
that says so as it gives up: one that does not answer in time has said nothing, nothing is remembered of it, and it is
asked again at the next need. What was found is remembered in the state folder until the kernel, the processor,
/dev/kvm's rights or QEMU's binary change. That guests do not run on KVM is remembered so that the agent starts at once,
and tried again behind it at each start of the agent (`retry_kvm`): it may have been a bad moment.
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
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor import cgroup, kvm
from serai.drivers.hypervisor.argv import BINARY, SANDBOX, Features
from serai.drivers.hypervisor.base import QmpError
from serai.drivers.hypervisor.qmp import Qmp
from serai.lib import atomicfile
from serai.lib.process import Child, ProgramMissingError, owner, spawn
from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError, SeraiError, UnavailableError
from serai.schema.host import SANDBOX_ABILITY, Ability, HypervisorFacts

log = logging.getLogger(__name__)

USER = "serai-qemu"
MEMORY_FILE = "hypervisor.json"
FORMAT = 3
LAST_WORDS = 2.0
"""Seconds for a QEMU that hung up to end; until then it has not given up, it is silent."""
Q35_OPTIONS = ("vmport", "hpet", "sata", "smbus", "smm")
NEEDED_CAPABILITIES = ("events", "pause-before-switchover")
ALLOW = "allow_unsandboxed"
"""The key of the agent's configuration."""


@dataclass(frozen=True, slots=True)
class QemuAnswers:
    """QEMU's own answers. `refused`: why it does not start in its sandbox, in its words; empty if it does."""

    version: str
    machines: list[str]
    capabilities: list[str]
    q35_properties: list[str]
    refused: str

    @property
    def suppress_vmdesc(self) -> bool:
        return "suppress-vmdesc" in self.q35_properties


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What is remembered. `fresh`: looked for by this process."""

    answers: QemuAnswers
    kvm: Ability
    fresh: bool = True

    @property
    def features(self) -> Features:
        """What the command line depends on."""
        options = frozenset(self.answers.q35_properties) & set(Q35_OPTIONS)
        return Features(BINARY, self.answers.suppress_vmdesc, not self.answers.refused, options)

    def facts(self, *, allow_unsandboxed: bool = False) -> HypervisorFacts:
        answers = self.answers
        model, flags = _cpu()
        return HypervisorFacts(
            qemu_version=answers.version,
            machine_types=answers.machines,
            migration_capabilities=answers.capabilities,
            suppress_vmdesc=answers.suppress_vmdesc,
            accel="kvm" if self.kvm.found else "tcg",
            cpu_model=model,
            cpu_flags=flags,
            abilities=[
                Ability(name="qemu", found=True, detail=f"QEMU {answers.version}", required=True),
                _sandbox(answers, allow_unsandboxed),
                _migration(answers),
                self.kvm,
                _postcopy(answers),
                cgroup.ability(),
            ],
        )


async def probe() -> list[Ability]:
    """For `serai doctor`: probe without reading or writing the cache."""
    try:
        result = await _probe_now(USER)
    except SeraiError as error:
        detail, remedy = error.info.message, error.info.remedy or "Install it: 'apt install qemu-system-x86'."
        return [Ability(name="qemu", found=False, detail=detail, remedy=remedy, required=True), cgroup.ability()]
    return (await asyncio.to_thread(result.facts)).abilities


async def probe_cached(state_dir: Path, user: str | None) -> ProbeResult:
    """The cached result, or else a new probe, which is cached.

    Raises ProgramMissingError without a QEMU, HostError for one that does not work, UnavailableError for one that does
    not answer in time: then nothing is remembered.
    """
    memory = state_dir / MEMORY_FILE
    key = await asyncio.to_thread(_key, user)
    known = await asyncio.to_thread(_recall, memory, key)
    if known is not None:
        return known
    result = await _probe_now(user)
    await asyncio.to_thread(_remember, memory, key, result)
    return result


async def retry_kvm(state_dir: Path, user: str | None, known: ProbeResult) -> ProbeResult:
    """If guests were not seen to run on KVM by an earlier process, try once more, and remember what came of it."""
    if known.fresh or known.kvm.found:
        return known
    result = dataclasses.replace(known, kvm=await kvm.probe_kvm(user), fresh=True)
    key = await asyncio.to_thread(_key, user)
    await asyncio.to_thread(_remember, state_dir / MEMORY_FILE, key, result)
    return result


# --- memory -----------------------------------------------------------------------------------------------------------


def _key(user: str | None) -> str:
    binary = shutil.which(BINARY)
    parts: list[object] = [FORMAT, platform.release(), _cpu()[0], user]
    for path in (binary, str(kvm.KVM)):
        if path is None or not Path(path).exists():
            parts.append("none")
            continue
        status = Path(path).stat()
        parts += [path, status.st_mode, status.st_gid]
        # A device node's times change with each boot, a binary's with each upgrade.
        parts += [status.st_size, status.st_mtime_ns] if path == binary else []
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _recall(memory: Path, key: str) -> ProbeResult | None:
    try:
        document = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if document.get("key") != key:
        return None
    return ProbeResult(QemuAnswers(**document["answers"]), Ability.model_validate(document["kvm"]), fresh=False)


def _remember(memory: Path, key: str, result: ProbeResult) -> None:
    document = {"key": key, "answers": dataclasses.asdict(result.answers), "kvm": result.kvm.model_dump()}
    memory.parent.mkdir(parents=True, exist_ok=True)
    atomicfile.write_text(memory, json.dumps(document, indent=1))


# --- asking QEMU ------------------------------------------------------------------------------------------------------


class QemuStartError(HostError):
    """QEMU ended before it answered. `exit_code` is negative for a signal; `words` its last ones."""

    def __init__(self, code: int, words: str) -> None:
        self.exit_code = code
        self.words = words or f"code {code}"
        super().__init__(
            f"QEMU ends as it starts: {self.words}", remedy=f"See what '{BINARY} -machine none' says; reinstall it."
        )

    @property
    def due_to_sandbox(self) -> bool:
        """Whether the sandbox made it fail, by its message or by the kernel's signal for a denied call."""
        return self.exit_code == -signal.SIGSYS or any(word in self.words for word in ("sandbox", "seccomp"))


async def _probe_now(user: str | None) -> ProbeResult:
    return ProbeResult(await _ask(user), await kvm.probe_kvm(user))


async def _ask(user: str | None) -> QemuAnswers:
    try:
        return await _answers(user, ["-sandbox", SANDBOX], refused="")
    except QemuStartError as error:
        if not error.due_to_sandbox:
            raise
        return await _answers(user, [], refused=error.words)


async def _answers(user: str | None, options: list[str], *, refused: str) -> QemuAnswers:
    async with _idle_qemu(user, options) as qmp:
        machines = _machine_types(await qmp.execute("query-machines"))
        properties: Any = []
        if machines:
            with contextlib.suppress(QmpError):
                properties = await qmp.execute("qom-list-properties", {"typename": f"{machines[0]}-machine"})
        numbers = (await qmp.execute("query-version"))["qemu"]
        capabilities = await qmp.execute("query-migrate-capabilities")
        return QemuAnswers(
            version=f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}",
            machines=machines,
            capabilities=sorted(str(item["capability"]) for item in capabilities),
            q35_properties=sorted(str(item["name"]) for item in properties),
            refused=refused,
        )


def _machine_types(machines: list[dict[str, Any]]) -> list[str]:
    """Those that Serai uses, the newest first, without what QEMU is about to drop."""
    names = {str(item["name"]) for item in machines if not item.get("deprecated")}
    q35 = [name for name in names if name.startswith("pc-q35-")]
    q35.sort(key=lambda name: [int(part) for part in name.removeprefix("pc-q35-").split(".")], reverse=True)
    return q35 + (["microvm"] if "microvm" in names else [])


@asynccontextmanager
async def _idle_qemu(user: str | None, options: list[str]) -> AsyncIterator[Qmp]:
    """A QEMU without a machine, to ask. Raises QemuStartError, UnavailableError, ProgramMissingError."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serai-probe-")))
        child = await _spawn(folder, user, options)
        qmp = Qmp("(probe)", folder / "qmp.sock", lambda _event: None)
        try:
            await qmp.connect()
            yield qmp
        except UnavailableError as error:
            raise await _failure(child, folder) from error
        finally:
            await qmp.close()
            await child.kill()


async def _spawn(folder: Path, user: str | None, options: list[str]) -> Child:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "qmp.sock"))
        listener.listen(1)
        # -S: the event that it runs would overtake the greeting, if a connection is there so early.
        argv = [BINARY, "-machine", "none", "-S", "-nodefaults", "-no-user-config", "-display", "none", *options]
        argv += ["-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"]
        argv += ["-mon", "chardev=qmp,mode=control"]
        try:
            return await spawn(
                argv, user=user, group=owner(user)[1], pass_fds=[listener.fileno()], stderr=folder / "log"
            )
        except ProgramMissingError as error:
            remedy = "Install it: 'apt install qemu-system-x86'."
            raise ProgramMissingError(error.info.message, field="program", value=BINARY, remedy=remedy) from error


async def _failure(child: Child, folder: Path) -> SeraiError:
    try:
        async with time_limit(LAST_WORDS):
            code = await child.wait()
    except TimeoutError:
        return UnavailableError(
            "QEMU was started to be asked what it can do, and did not answer in time",
            remedy="The machine may be very busy. Nothing is taken from this; QEMU is asked again.",
        )
    words = (folder / "log").read_text(errors="replace").strip().splitlines()
    return QemuStartError(code, words[-1].removeprefix(f"{BINARY}: ") if words else "")


# --- what follows from its answers ------------------------------------------------------------------------------------


def _sandbox(answers: QemuAnswers, allowed: bool) -> Ability:
    if not answers.refused:
        return Ability(name=SANDBOX_ABILITY, found=True, detail="QEMU starts with all denials", required=True)
    follows = f"VMs run without it, as {ALLOW} in the agent's configuration says" if allowed else "no VM is started"
    return Ability(
        name=SANDBOX_ABILITY,
        found=False,
        detail=f"QEMU does not start in its sandbox ({answers.refused}): {follows}",
        remedy=f"Use a QEMU built with seccomp. Or set {ALLOW} in the agent's configuration: then a guest "
        "that breaks out can do more.",
        required=not allowed,
    )


def _migration(answers: QemuAnswers) -> Ability:
    lacking = [name for name in NEEDED_CAPABILITIES if name not in answers.capabilities]
    if not answers.suppress_vmdesc:
        lacking.append("suppress-vmdesc")
    detail = f"QEMU has no {', '.join(lacking)}" if lacking else "QEMU has what a move needs"
    remedy = "Install QEMU 7.2 or newer." if lacking else ""
    return Ability(name="live-migration", found=not lacking, detail=detail, remedy=remedy, required=True)


def _postcopy(answers: QemuAnswers) -> Ability:
    found = "postcopy-ram" in answers.capabilities and Path("/dev/userfaultfd").exists()
    detail = "QEMU has it, and the kernel userfaultfd" if found else "no /dev/userfaultfd, or not in this QEMU"
    return Ability(name="postcopy", found=found, detail=detail, remedy="" if found else "Needs Linux 6.1 or newer.")


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
