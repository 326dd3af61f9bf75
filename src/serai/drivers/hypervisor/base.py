"""The contract of the hypervisor: machines that are started, adopted, moved, and that end.

A `Machine` is one QEMU process on this host. It outlives its holder: `close` drops our connections only, and
`Hypervisor.adopt` finds it again by the folder it runs in. That a machine does not answer (UnavailableError) never
means that it is dead; `ended` alone says so, and it watches the process itself.

How a machine ends: whatever the guest does (it powers itself off, its kernel panics) the process ends, and `ended`
says why; if nobody watched at that moment the process waits, stopped, to be adopted, and ends then, its reason kept.
A reset by the guest is no end.

Sizes are in bytes, times in milliseconds where a name says `_ms`, else in seconds. All machines, the fake one too,
pass tests/contract/hypervisor.

Errors: ConflictError (not in this state, no such device), UnsupportedError (not live, or not on this machine),
UnavailableError (no answer in time, connection lost), HostError (QEMU said no, in its own words).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from serai.schema.errors import HostError
from serai.schema.host import HypervisorFacts
from serai.schema.launch import Disk, Launch, VnicAttachment


class RunState(StrEnum):
    """QEMU's own run states, as `query-status` names them."""

    DEBUG = "debug"
    INMIGRATE = "inmigrate"
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    PAUSED = "paused"
    POSTMIGRATE = "postmigrate"
    PRELAUNCH = "prelaunch"
    FINISH_MIGRATE = "finish-migrate"
    RESTORE_VM = "restore-vm"
    RUNNING = "running"
    SAVE_VM = "save-vm"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"


class QmpError(HostError):
    """QEMU answered a command with an error. `command` is the command; `reason` QEMU's class and words."""

    def __init__(self, command: str, error_class: str, reason: str) -> None:
        self.command = command
        self.error_class = error_class
        self.reason = reason
        super().__init__(f"QEMU refused {command}: {reason}")


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """A QMP event. `name` and `data` are QEMU's; `at` is `time.monotonic()`, taken as it was received."""

    name: str
    data: Mapping[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class MigrationStats:
    """What `query-migrate` says. `status` is QEMU's (`none` before any migration); `ram_transferred` in bytes.

    `rounds` counts passes over the memory.
    """

    status: str
    downtime_ms: float = 0.0
    ram_transferred: int = 0
    rounds: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class MigrationSetup:
    """How to migrate. `bandwidth_bytes` per second, 0 for all there is.

    `tls_hostname` is the identity of the peer's QEMUs (`lib.pki.qemu_identity`) as its certificate must have it: on
    the source among the destination's alternative names, on the destination the source's common name. None: no TLS.
    """

    capabilities: Mapping[str, bool]
    downtime_limit_ms: int
    bandwidth_bytes: int
    tls_hostname: str | None


@dataclass(frozen=True, slots=True)
class HostResources:
    """What of this host a VM gets: files, sockets, taps, its user and its control group.

    The hypervisor opens `disks` and `seed` itself and hands them over open, so QEMU's user needs no right to them.
    `kernel`, `initrd` and the files in `tls_dir` must be readable to `user`. The tap descriptors in `taps` stay the
    caller's to close once `start` has returned; QEMU has its own copies.
    """

    run_dir: Path
    """The VM's folder of sockets (`HostPaths.vm_run`), made if missing, readable to nobody else."""
    tls_dir: Path | None = None
    """In QEMU's own file names, see `lib.pki.write_qemu_folder`. None: no migration with TLS."""
    taps: Mapping[int, int] = field(default_factory=dict)
    """VNIC index to open tap descriptor."""
    disks: Mapping[int, Path] = field(default_factory=dict)
    """Disk index to file, for each disk with a file source."""
    seed: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    user: str | None = "serai-qemu"
    """None: as we ourselves are."""
    cgroup: str | None = "serai"
    """The parent group below which the VM gets a group of its own, where this machine has them. None: ours."""


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """How a machine's process ended. An adopted one is another's child: its code and signal stay None.

    `shutdown` is the reason of the SHUTDOWN event (`guest-shutdown`, `guest-panic`, `host-qmp-quit`, `host-signal`, …),
    the guest's own first; None: the process ended without one. `log_tail` is the end of QEMU's own log.
    """

    code: int | None
    signal: int | None
    shutdown: str | None
    log_tail: str


class Machine(Protocol):
    """One QEMU process, started or adopted. Any number of calls may be under way at once."""

    @property
    def vm(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def launch(self) -> Launch:
        """What QEMU runs with now, live changes included. The other end of a migration must be started from this."""

    @property
    def alive(self) -> bool:
        """Its process has not ended, as far as the kernel says this moment; takes microseconds."""

    async def run_state(self) -> RunState: ...

    def subscribe(self, handler: Callable[[MachineEvent], None]) -> Callable[[], None]:
        """Have `handler` called with each event, from the connection's reader, with no queue between; return how to
        stop that. A handler must not block and must not raise; what it raises is logged.
        """

    async def ended(self) -> ExitInfo:
        """Return once the process is gone. Any number may wait, at any time, after `close` too."""

    async def cont(self) -> None:
        """Run the vCPUs. On a machine that was given all state by a migration this takes its disks over as well."""

    async def stop(self) -> None: ...

    async def reset(self) -> None: ...

    async def powerdown(self) -> None:
        """Press the ACPI power button; the guest may ignore it."""

    async def quit(self, timeout: float) -> None:
        """End the process, its disks flushed; by force after `timeout`. Returns when it is gone."""

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""

    async def prepare_incoming(self, setup: MigrationSetup, listen_host: str, port_range: tuple[int, int]) -> int:
        """Destination, started with `incoming=True`: listen on one port of the range (both ends in it); return it."""

    async def migrate(self, host: str, port: int, setup: MigrationSetup) -> None:
        """Source: start. What becomes of it comes as MIGRATION events (`status` in their data)."""

    async def migrate_continue(self) -> None:
        """Source, in `pre-switchover`: send the last state."""

    async def migrate_cancel(self) -> None:
        """Source: ask for the end; MIGRATION `cancelled` follows unless all was sent already."""

    async def migration_stats(self) -> MigrationStats: ...

    async def block_grow(self, index: int, size: int) -> None:
        """Tell the guest that its disk has grown; the volume must have grown before."""

    async def set_cpus(self, count: int) -> None:
        """Plug vCPUs in, up to `launch.max_cpus`. Fewer: UnsupportedError, it applies at the next start."""

    async def set_memory(self, size: int) -> None:
        """UnsupportedError where it cannot be done live; then it applies at the next start."""

    async def attach_disk(self, disk: Disk, path: Path | None) -> None:
        """Plug a disk in; `path` for one with a file source."""

    async def detach_disk(self, index: int) -> None:
        """Unplug; returns when the guest has released the disk. UnavailableError on time-out: the disk stays."""

    async def attach_vnic(self, vnic: VnicAttachment, fd: int) -> None:
        """Plug a VNIC in; `fd` is its tap, and stays the caller's to close."""

    async def detach_vnic(self, index: int) -> None: ...

    async def guest_agent_open(self) -> bool:
        """An agent in the guest has opened its channel. Later changes come as VSERPORT_CHANGE events."""

    async def announce(self) -> None:
        """Have QEMU say on the network where the VM's addresses are now (RARP, several rounds)."""

    async def close(self) -> None:
        """Drop our connections; the machine goes on."""


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A machine's process on this host. `kill` returns when it is gone."""

    vm: str
    pid: int
    kill: Callable[[], Awaitable[None]]


class Hypervisor(Protocol):
    """What starts and finds machines on this host."""

    async def facts(self) -> HypervisorFacts:
        """What was found out about this machine; probed once, then remembered. UnavailableError: it did not answer in
        time, nothing is known; ask again.
        """

    async def retry_kvm(self) -> HypervisorFacts:
        """Try once more what an earlier process found missing and may have met at a bad moment; the facts since."""

    async def start(self, launch: Launch, resources: HostResources, *, incoming: bool, paused: bool) -> Machine:
        """Start a VM, or with `incoming` (then always paused) an empty one to migrate into.

        Returns when QEMU answers. On any error nothing is left running. HostError has QEMU's own words.
        UnsupportedError: QEMU has no sandbox here and the agent's configuration does not allow that, or it could not
        receive a move safely.
        """

    async def adopt(self, vm: str, run_dir: Path) -> Machine | None:
        """Take a machine over that an earlier process of ours started; None if it is gone.

        UnavailableError: it is there and does not answer; try again, it is not dead.
        """

    async def processes(self) -> list[QemuProcess]:
        """Every machine on this host, as its processes tell: whatever started them, whether or not they answer."""
