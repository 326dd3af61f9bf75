"""One QEMU process behind the `Machine` contract: its connection, its events, its end.

QEMU is started so that a guest's poweroff or panic leaves it stopped (see argv.py); its holder then ends
it. So the reason is never lost: an agent that was away finds it in the run state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from serai.drivers.hypervisor import cgroup, hotplug, migration, record
from serai.drivers.hypervisor.base import ExitInfo, MachineEvent, MigrationSetup, MigrationStats, QmpError, RunState
from serai.drivers.hypervisor.qmp import Qmp
from serai.drivers.hypervisor.record import Runtime
from serai.lib.process import Child, Watched
from serai.lib.timeouts import time_limit
from serai.schema.errors import ConflictError, SeraiError, UnavailableError, UnsupportedError
from serai.schema.launch import Disk, Launch, VnicAttachment

log = logging.getLogger(__name__)

DRAIN_TIMEOUT = 2.0
"""Seconds for the last events of a process that is gone to be read from its socket."""
FINALIZE_TIMEOUT = 5.0
FINALIZE_LOOK = 0.005
"""Seconds that a source may take from `completed` to its end, and between two polls: no event reports it."""
FINALIZING = frozenset({RunState.FINISH_MIGRATE, RunState.POSTMIGRATE})
LOG_LOOK = 2.0
"""Seconds between two looks at the size of QEMU's log."""
ENDED_BY_GUEST = {RunState.SHUTDOWN: "guest-shutdown", RunState.GUEST_PANICKED: "guest-panic"}
ANNOUNCE = {"initial": 20, "max": 250, "rounds": 5, "step": 50}
"""Milliseconds, and rounds: the first at once."""


class QemuMachine:
    """See `base.Machine`. Made by `launched` or `adopted` of qemu.py only, then `open`ed."""

    def __init__(self, run_dir: Path, runtime: Runtime, process: Watched) -> None:
        self._run_dir = run_dir
        self._runtime = runtime
        self._process = process
        self._handlers: list[Callable[[MachineEvent], None]] = []
        self._qmp = Qmp(runtime.launch.vm, run_dir / "qmp.sock", self._on_event)
        self._shutdown: str | None = None
        self._exit: ExitInfo | None = None
        self._watching: asyncio.Task[ExitInfo] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    @property
    def vm(self) -> str:
        return self._runtime.launch.vm

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def launch(self) -> Launch:
        return self._runtime.launch

    @property
    def alive(self) -> bool:
        return self._process.alive

    @property
    def run_dir(self) -> Path:
        """The folder of its sockets."""
        return self._run_dir

    async def open(self) -> None:
        """Connect, and from now on watch the process. A guest that ended while nobody watched is ended now."""
        connecting = asyncio.create_task(self._qmp.connect(), name=f"qmp-{self.vm}")
        exiting = asyncio.create_task(self._process.exited(), name=f"exit-{self.vm}")
        try:
            await asyncio.wait({connecting, exiting}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise UnavailableError(f"QEMU of VM {self.vm} ended before it answered")
            await connecting
        except BaseException:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await self._qmp.close()
            raise
        finally:
            exiting.cancel()
            await asyncio.gather(exiting, return_exceptions=True)
        self._watching = asyncio.create_task(self._watch(), name=f"watch-{self.vm}")

    async def settle(self) -> None:
        """After adoption: end a machine whose guest has ended itself in the meantime."""
        reason = ENDED_BY_GUEST.get(await self.run_state())
        if reason is not None:
            self._end_by_guest(reason)

    # --- events and the end ---

    def subscribe(self, handler: Callable[[MachineEvent], None]) -> Callable[[], None]:
        self._handlers.append(handler)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._handlers.remove(handler)

        return forget

    def _on_event(self, event: MachineEvent) -> None:
        for handler in tuple(self._handlers):
            try:
                handler(event)
            except Exception:  # an error of a listener must not cost the others, or the connection
                log.exception("a listener failed on %s of VM %s", event.name, self.vm)
        if event.name == "SHUTDOWN":
            if event.data.get("guest"):
                self._end_by_guest(str(event.data.get("reason", "guest-shutdown")))
            elif self._shutdown is None:
                self._shutdown = str(event.data.get("reason"))
        elif event.name == "GUEST_PANICKED":
            self._end_by_guest("guest-panic")

    def _end_by_guest(self, reason: str) -> None:
        if self._ending is None:
            self._shutdown = reason
            self._ending = asyncio.create_task(self.quit(5.0), name=f"end-{self.vm}")

    async def ended(self) -> ExitInfo:
        if self._exit is not None:
            return self._exit
        if self._watching is not None:
            return await asyncio.shield(self._watching)
        await self._process.exited()
        return self._exit_info()

    async def _watch(self) -> ExitInfo:
        exiting = asyncio.ensure_future(self._process.exited())
        try:
            while not exiting.done():
                await asyncio.wait({exiting}, timeout=LOG_LOOK)
                record.bound_log(self._run_dir)
        finally:
            exiting.cancel()
        await exiting
        # The last events, SHUTDOWN among them, may still be on their way through the socket.
        with contextlib.suppress(TimeoutError):
            async with time_limit(DRAIN_TIMEOUT):
                await self._qmp.drained()
        await self._qmp.close()
        return self._exit_info()

    def _exit_info(self) -> ExitInfo:
        if self._exit is None:
            code = self._process.returncode if isinstance(self._process, Child) else None
            self._exit = ExitInfo(
                code=code if code is not None and code >= 0 else None,
                signal=-code if code is not None and code < 0 else None,
                shutdown=self._shutdown,
                log_tail=record.log_tail(self._run_dir),
            )
            record.clear(self._run_dir, self.pid)
            cgroup.remove(self._runtime.cgroups)
        return self._exit

    async def close(self) -> None:
        if self._watching is not None:
            if self._process.alive:
                self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            if self._exit is None:
                self._watching = None
        await self._qmp.close()
        if self._ending is not None:
            await asyncio.gather(self._ending, return_exceptions=True)

    # --- run state ---

    async def run_state(self) -> RunState:
        return RunState((await self._qmp.execute("query-status"))["status"])

    async def cont(self) -> None:
        until = time.monotonic() + FINALIZE_TIMEOUT
        while True:
            try:
                await self._qmp.execute("cont")
                return
            except QmpError:
                # A source says `completed` a moment before it leaves finish-migrate, and refuses until it has: perhaps
                # between its refusal and the look at its state.
                if time.monotonic() > until or await self.run_state() not in FINALIZING:
                    raise
            await asyncio.sleep(FINALIZE_LOOK)

    async def stop(self) -> None:
        await self._qmp.execute("stop")

    async def reset(self) -> None:
        await self._qmp.execute("system_reset")

    async def powerdown(self) -> None:
        await self._qmp.execute("system_powerdown")

    async def quit(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        with contextlib.suppress(SeraiError):
            # Refused or unanswered: what counts is whether it goes.
            await self._qmp.execute("quit", timeout=timeout)
        try:
            async with time_limit(max(0.0, until - time.monotonic())):
                await self._process.exited()
        except TimeoutError:
            log.warning("QEMU of VM %s did not end within %g s: killing it", self.vm, timeout)
            await self._process.kill()

    async def kill(self) -> None:
        await self._process.kill()

    # --- migration ---

    async def prepare_incoming(self, setup: MigrationSetup, listen_host: str, port_range: tuple[int, int]) -> int:
        return await migration.prepare_incoming(self._qmp, setup, self._runtime.tls_dir, listen_host, port_range)

    async def migrate(self, host: str, port: int, setup: MigrationSetup) -> None:
        await migration.migrate(self._qmp, setup, self._runtime.tls_dir, host, port)

    async def migrate_continue(self) -> None:
        await self._qmp.execute("migrate-continue", {"state": "pre-switchover"})

    async def migrate_cancel(self) -> None:
        await self._qmp.execute("migrate_cancel")

    async def migration_stats(self) -> MigrationStats:
        return migration.parse_stats(await self._qmp.execute("query-migrate"))

    async def announce(self) -> None:
        await self._qmp.execute("announce-self", ANNOUNCE)

    # --- live changes ---

    async def block_grow(self, index: int, size: int) -> None:
        async with self._changing:
            launch = self.launch
            if all(disk.index != index for disk in launch.disks):
                raise ConflictError("the VM has no such disk", field="disk", value=index)
            await self._qmp.execute("block_resize", {"node-name": f"disk{index}", "size": size}, timeout=30)
            disks = [d.model_copy(update={"size": size}) if d.index == index else d for d in launch.disks]
            self._keep(launch.model_copy(update={"disks": disks}))

    async def set_cpus(self, count: int) -> None:
        async with self._changing:
            self._keep(await hotplug.set_cpus(self._qmp, self.launch, count))

    async def set_memory(self, size: int) -> None:
        if size != self.launch.memory:
            raise UnsupportedError(
                "memory cannot be changed live", field="memory", value=size, remedy="Restart the VM: it applies then."
            )

    async def attach_disk(self, disk: Disk, path: Path | None) -> None:
        async with self._changing:
            self._keep(await hotplug.attach_disk(self._qmp, self.launch, disk, path))

    async def detach_disk(self, index: int) -> None:
        async with self._changing:
            self._keep(await hotplug.detach_disk(self._qmp, self.subscribe, self.launch, index))

    async def attach_vnic(self, vnic: VnicAttachment, fd: int) -> None:
        async with self._changing:
            self._keep(await hotplug.attach_vnic(self._qmp, self.launch, vnic, fd))

    async def detach_vnic(self, index: int) -> None:
        async with self._changing:
            self._keep(await hotplug.detach_vnic(self._qmp, self.subscribe, self.launch, index))

    def _keep(self, launch: Launch) -> None:
        self._runtime = self._runtime.model_copy(update={"launch": launch})
        record.write(self._run_dir, self._runtime)

    # --- the guest ---

    async def guest_agent_open(self) -> bool:
        devices = await self._qmp.execute("query-chardev")
        return any(device["label"] == "qga" and device["frontend-open"] for device in devices)
