"""A hypervisor in memory that keeps the contract: for tests of all that stands on it.

A `FakeWorld` is what lies below the machines' holders, as the kernel does below an agent: its processes outlive every
`FakeMachine` that is a handle to one, and its network joins the two ends of a migration. Tests act on a
`FakeProcess`: the guest powers off, the process is killed, QMP falls silent. `FakeWorld.hold_at` stops migrations at a
status until `release`; `fail_at` has them fail there.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor.argv import PLUGGABLE
from serai.drivers.hypervisor.base import (
    ExitInfo,
    HostResources,
    MachineEvent,
    MigrationSetup,
    MigrationStats,
    QmpError,
    RunState,
)
from serai.schema.errors import ConflictError, InvalidError, UnavailableError, UnsupportedError
from serai.schema.launch import Disk, Launch, VnicAttachment

CAPABILITIES = ["events", "multifd", "pause-before-switchover", "postcopy-ram", "return-path"]
MACHINES = ["pc-q35-10.0", "pc-q35-7.2", "microvm"]
UNDER_WAY = frozenset({"setup", "active", "pre-switchover", "device", "cancelling"})
_pids = count(1_000_001)  # beyond what a kernel gives out by default


class FakeWorld:
    """Processes by run folder, and who listens on which address."""

    def __init__(self) -> None:
        self.processes: dict[Path, FakeProcess] = {}
        self.listening: dict[tuple[str, int], FakeProcess] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.fail_at: str | None = None
        self._held: dict[str, asyncio.Event] = {}

    def hold_at(self, status: str) -> None:
        """Stop migrations before they get to `status` (`active`, `pre-switchover`, `device`, `completed`)."""
        self._held[status] = asyncio.Event()

    def release(self, status: str) -> None:
        """Let them go on."""
        self._held.pop(status).set()

    async def gate(self, status: str) -> None:
        """Wait as long as `status` is held."""
        held = self._held.get(status)
        if held is not None:
            await held.wait()
        await asyncio.sleep(0)

    def start(self, task: asyncio.Task[None]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """End all that is under way."""
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class FakeProcess:
    """One QEMU's stand-in. Its attributes are for tests to read and to set."""

    def __init__(self, world: FakeWorld, launch: Launch, resources: HostResources, *, incoming: bool) -> None:
        self.world = world
        self.pid = next(_pids)
        self.launch = launch
        self.resources = resources
        self.state = RunState.INMIGRATE if incoming else RunState.PRELAUNCH
        self.silent = False
        self.ignores_powerdown = False
        self.guest_agent_open = False
        self.stats = MigrationStats("none")
        self.setup: MigrationSetup | None = None
        self.migrating: asyncio.Task[None] | None = None
        self.continued = asyncio.Event()
        self.machine: FakeMachine | None = None
        self.shutdown: str | None = None
        self.over = asyncio.Event()
        self.code: int | None = None
        self.signal: int | None = None
        self.log = ""

    @property
    def alive(self) -> bool:
        return not self.over.is_set()

    def emit(self, name: str, **data: Any) -> None:
        """An event, to whoever holds the machine now; nobody: it is lost, as with QEMU."""
        if self.machine is not None:
            self.machine.deliver(MachineEvent(name, data, time.monotonic()))

    def end(self, *, code: int | None = None, by_signal: int | None = None) -> None:
        """The process is gone."""
        if not self.alive:
            return
        self.code, self.signal = code, by_signal
        if self.migrating is not None:
            self.migrating.cancel()
        self.over.set()

    def guest_ends(self, reason: str = "guest-shutdown") -> None:
        """The guest powers itself off (or `guest-panic`); with nobody there the machine waits, stopped."""
        self.state = RunState.GUEST_PANICKED if reason == "guest-panic" else RunState.SHUTDOWN
        if self.machine is None:
            return
        self.shutdown = reason
        if reason == "guest-panic":
            self.emit("GUEST_PANICKED", action="pause")
        else:
            self.emit("SHUTDOWN", guest=True, reason=reason)
        self.end(code=0)

    def io_error(self, index: int = 0) -> None:
        """The storage under a disk fails; the machine stops."""
        self.state = RunState.IO_ERROR
        where = {"node-name": f"disk{index}", "reason": "Input/output error"}
        self.emit("BLOCK_IO_ERROR", device="", action="stop", operation="write", **where)
        self.emit("STOP")

    # --- migration ---

    def mark(self, status: str, **changes: Any) -> None:
        """A migration status, with its event."""
        self.stats = MigrationStats(status, **changes)
        if self.setup is not None and self.setup.capabilities.get("events"):
            self.emit("MIGRATION", status=status)

    async def send_to(self, peer: FakeProcess | None) -> None:
        """The source's side of a pre-copy migration; `peer` none: nobody listens there."""
        running = self.state is RunState.RUNNING
        try:
            self.mark("setup")
            await self._reach("active", peer)
            self.emit("MIGRATION_PASS", **{"pass": 1})
            self.mark("active", rounds=1)
            self._receive(peer, "active")
            await self._reach("pre-switchover", peer)
            stopped = time.monotonic()
            self._halt(running)
            if self.setup is not None and self.setup.capabilities.get("pause-before-switchover"):
                self.mark("pre-switchover", rounds=1)
                await self.continued.wait()
            await self._reach("device", peer)
            self.mark("device", rounds=2)
            await self._reach("completed", peer)
        except _Broken as error:
            self._fail(running, str(error))
            return
        now = time.monotonic()
        self.state = RunState.POSTMIGRATE
        figures = {"downtime_ms": (now - stopped) * 1000, "rounds": 2}
        self.mark("completed", ram_transferred=self.launch.memory, **figures)
        if peer is not None:
            peer.state = RunState.PAUSED
            self._receive(peer, "completed")

    async def _reach(self, status: str, peer: FakeProcess | None) -> None:
        await self.world.gate(status)
        if self.world.fail_at == status:
            raise _Broken(f"made to fail before {status}")
        if peer is None or not peer.alive:
            raise _Broken("Connection refused" if peer is None else "Connection reset by peer")

    def _halt(self, running: bool) -> None:
        self.state = RunState.FINISH_MIGRATE if running else self.state
        if running:
            self.emit("STOP")

    def _fail(self, running: bool, reason: str) -> None:
        self.mark("failed", error=reason)
        self.resume_after(running)

    def resume_after(self, running: bool) -> None:
        """As QEMU does: after a migration that came to nothing the guest goes on as it was."""
        if running and self.state is not RunState.RUNNING:
            self.state = RunState.RUNNING
            self.emit("RESUME")

    @staticmethod
    def _receive(peer: FakeProcess | None, status: str) -> None:
        if peer is not None and peer.alive:
            peer.mark(status)


class _Broken(Exception):  # noqa: N818 - never leaves this module
    """The stream broke."""


class FakeMachine:
    """See `base.Machine`: a handle to a `FakeProcess`, which tests find as `process`."""

    def __init__(self, process: FakeProcess, *, adopted: bool) -> None:
        self.process = process
        self._adopted = adopted
        self._handlers: list[Callable[[MachineEvent], None]] = []
        self._was_running = False
        process.machine = self

    @property
    def vm(self) -> str:
        return self.process.launch.vm

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def launch(self) -> Launch:
        return self.process.launch

    @property
    def alive(self) -> bool:
        return self.process.alive

    def deliver(self, event: MachineEvent) -> None:
        """Call the subscribers."""
        for handler in tuple(self._handlers):
            handler(event)

    def subscribe(self, handler: Callable[[MachineEvent], None]) -> Callable[[], None]:
        self._handlers.append(handler)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._handlers.remove(handler)

        return forget

    async def ended(self) -> ExitInfo:
        await self.process.over.wait()
        known = not self._adopted
        return ExitInfo(
            code=self.process.code if known else None,
            signal=self.process.signal if known else None,
            shutdown=self.process.shutdown,
            log_tail=self.process.log,
        )

    async def _answer(self, command: str) -> FakeProcess:
        await asyncio.sleep(0)
        if self.process.silent:
            raise UnavailableError(f"QEMU of VM {self.vm} did not answer {command} in time")
        if not self.process.alive or self.process.machine is not self:
            raise UnavailableError(f"the connection to QEMU of VM {self.vm} is lost ({command})")
        return self.process

    # --- run state ---

    async def run_state(self) -> RunState:
        return (await self._answer("query-status")).state

    async def cont(self) -> None:
        process = await self._answer("cont")
        if process.stats.status in ("pre-switchover", "device"):
            raise QmpError("cont", "GenericError", "Migration is in progress")
        if process.state is not RunState.RUNNING:
            process.state = RunState.RUNNING
            process.emit("RESUME")

    async def stop(self) -> None:
        process = await self._answer("stop")
        if process.state is RunState.RUNNING:
            process.state = RunState.PAUSED
            process.emit("STOP")

    async def reset(self) -> None:
        process = await self._answer("system_reset")
        process.emit("RESET", guest=False, reason="host-qmp-system-reset")

    async def powerdown(self) -> None:
        process = await self._answer("system_powerdown")
        process.emit("POWERDOWN")
        if process.state is RunState.RUNNING and not process.ignores_powerdown:
            asyncio.get_running_loop().call_soon(process.guest_ends)

    async def quit(self, timeout: float) -> None:
        process = self.process
        if process.silent:
            await asyncio.sleep(timeout)
            await self.kill()
        elif process.alive:
            if process.shutdown is None:
                process.shutdown = "host-qmp-quit"
                process.emit("SHUTDOWN", guest=False, reason="host-qmp-quit")
            process.end(code=0)

    async def kill(self) -> None:
        self.process.end(by_signal=signal.SIGKILL)

    # --- migration ---

    async def prepare_incoming(self, setup: MigrationSetup, listen_host: str, port_range: tuple[int, int]) -> int:
        process = await self._answer("migrate-incoming")
        self._check(setup)
        if process.state is not RunState.INMIGRATE:
            raise QmpError("migrate-incoming", "GenericError", "'-incoming' was not specified on the command line")
        first, last = port_range
        for port in range(first, last + 1):
            if (listen_host, port) not in process.world.listening:
                process.world.listening[listen_host, port] = process
                process.setup = setup
                process.mark("setup")
                return port
        raise QmpError("migrate-incoming", "GenericError", "Failed to find an available port")

    async def migrate(self, host: str, port: int, setup: MigrationSetup) -> None:
        process = await self._answer("migrate")
        if process.stats.status in UNDER_WAY:
            raise ConflictError("a migration of this VM is under way already")
        self._check(setup)
        process.setup = setup
        process.continued.clear()
        self._was_running = process.state is RunState.RUNNING
        peer = process.world.listening.pop((host, port), None)
        if peer is not None and not peer.alive:
            peer = None
        process.migrating = asyncio.create_task(process.send_to(peer), name=f"fake-migration-{self.vm}")
        process.world.start(process.migrating)

    def _check(self, setup: MigrationSetup) -> None:
        unknown = set(setup.capabilities) - set(CAPABILITIES)
        if unknown:
            raise UnsupportedError(f"QEMU cannot migrate in the way that was asked for: {', '.join(sorted(unknown))}")
        if setup.tls_hostname is not None and self.process.resources.tls_dir is None:
            raise UnsupportedError("this VM was started without certificates for a migration with TLS")

    async def migrate_continue(self) -> None:
        process = await self._answer("migrate-continue")
        if process.stats.status != "pre-switchover":
            raise QmpError(
                "migrate-continue", "GenericError", f"Migration not in expected state: {process.stats.status}"
            )
        process.continued.set()

    async def migrate_cancel(self) -> None:
        process = await self._answer("migrate_cancel")
        if process.migrating is None or process.migrating.done():
            return
        process.migrating.cancel()
        process.mark("cancelling")
        process.mark("cancelled")
        process.resume_after(self._was_running)

    async def migration_stats(self) -> MigrationStats:
        return (await self._answer("query-migrate")).stats

    async def announce(self) -> None:
        await self._answer("announce-self")

    # --- live changes ---

    async def block_grow(self, index: int, size: int) -> None:
        process = await self._answer("block_resize")
        if all(disk.index != index for disk in process.launch.disks):
            raise ConflictError("the VM has no such disk", field="disk", value=index)
        disks = [d.model_copy(update={"size": size}) if d.index == index else d for d in process.launch.disks]
        self._keep(disks=disks)

    async def set_cpus(self, count: int) -> None:
        await self._answer("device_add")
        if not self.launch.cpus <= count <= self.launch.max_cpus:
            raise UnsupportedError("not between now and at most", field="cpus", value=count, remedy="Restart the VM.")
        self._keep(cpus=count)

    async def set_memory(self, size: int) -> None:
        if size != self.launch.memory:
            raise UnsupportedError(
                "memory cannot be changed live", field="memory", value=size, remedy="Restart the VM: it applies then."
            )

    async def attach_disk(self, disk: Disk, path: Path | None) -> None:
        await self._answer("device_add")
        self._pluggable("disk", disk.index)
        if any(present.index == disk.index for present in self.launch.disks):
            raise ConflictError("the VM has such a disk already", field="disk", value=disk.index)
        if disk.source.kind == "file" and path is None:
            raise InvalidError("no file is given for this disk on this host", field="disk", value=disk.index)
        self._keep(disks=[*self.launch.disks, disk])

    async def detach_disk(self, index: int) -> None:
        await self._answer("device_del")
        self._pluggable("disk", index)
        if all(disk.index != index for disk in self.launch.disks):
            raise ConflictError("the VM has no such disk", field="disk", value=index)
        self._keep(disks=[disk for disk in self.launch.disks if disk.index != index])

    async def attach_vnic(self, vnic: VnicAttachment, fd: int) -> None:
        del fd
        await self._answer("device_add")
        self._pluggable("vnic", vnic.index)
        if any(present.index == vnic.index for present in self.launch.vnics):
            raise ConflictError("the VM has such a VNIC already", field="vnic", value=vnic.index)
        self._keep(vnics=[*self.launch.vnics, vnic])

    async def detach_vnic(self, index: int) -> None:
        await self._answer("device_del")
        self._pluggable("vnic", index)
        if all(vnic.index != index for vnic in self.launch.vnics):
            raise ConflictError("the VM has no such VNIC", field="vnic", value=index)
        self._keep(vnics=[vnic for vnic in self.launch.vnics if vnic.index != index])

    @staticmethod
    def _pluggable(what: str, index: int) -> None:
        if index >= PLUGGABLE:
            raise UnsupportedError(f"only the first {PLUGGABLE} {what}s can be changed live", field=what, value=index)

    def _keep(self, **changes: Any) -> None:
        self.process.launch = self.process.launch.model_copy(update=changes)

    # --- the guest ---

    async def guest_agent_open(self) -> bool:
        return (await self._answer("query-chardev")).guest_agent_open

    async def close(self) -> None:
        if self.process.machine is self:
            self.process.machine = None
