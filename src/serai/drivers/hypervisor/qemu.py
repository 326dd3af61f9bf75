"""QEMU as a hypervisor: starts it with everything handed over open, and finds it again.

What QEMU gets, it gets as descriptors: its listening sockets (bound by us, so a connection waits for QEMU instead of
being tried again and again), disks, seed, taps. It runs as a user of its own without any right to those files, in a
session of its own, so that it outlives us, and in a sandbox that denies it to start anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path

from serai.drivers.hypervisor import cgroup, record
from serai.drivers.hypervisor.argv import MICROVM, Features, Handles, qemu_argv
from serai.drivers.hypervisor.base import HostResources, QemuProcess
from serai.drivers.hypervisor.kvm import accel_groups
from serai.drivers.hypervisor.machine import QemuMachine
from serai.drivers.hypervisor.probe import ALLOW, ProbeResult, probe_cached, retry_kvm
from serai.drivers.hypervisor.record import Runtime
from serai.drivers.hypervisor.tsc import measure_khz
from serai.lib.process import Child, owner, spawn, start_time
from serai.lib.rollback import Rollback
from serai.lib.timeouts import time_limit
from serai.schema.errors import ConflictError, HostError, SeraiError, UnavailableError, UnsupportedError
from serai.schema.host import HypervisorFacts
from serai.schema.launch import IscsiDisk, Launch

log = logging.getLogger(__name__)

LAST_WORDS = 2.0
"""Seconds for a QEMU that hung up to end; only then is it said to be alive and silent."""

DESCRIPTORS = 512
"""Room in QEMU's table of descriptors. A small guest's QEMU has about 100, some of them opened by `cont`: without the
room a guest that had moved waited 12 ms more for its processors, while QEMU's table grew from 64 to 128."""


class QemuHypervisor:
    """See `base.Hypervisor`. `state_dir` is where the probe's findings are remembered; `user` is what it probes as.

    `allow_unsandboxed`: where QEMU has no sandbox VMs run without; else none is started there.
    """

    def __init__(self, state_dir: Path, *, user: str | None = "serai-qemu", allow_unsandboxed: bool = False) -> None:
        self._state_dir = state_dir
        self._user = user
        self._allow_unsandboxed = allow_unsandboxed
        self._probed: ProbeResult | None = None
        self._tsc_khz: int | None = None

    async def facts(self) -> HypervisorFacts:
        return (await self._probe()).facts(allow_unsandboxed=self._allow_unsandboxed)

    async def retry_kvm(self) -> HypervisorFacts:
        self._probed = await retry_kvm(self._state_dir, self._user, await self._probe())
        return await self.facts()

    async def _probe(self) -> ProbeResult:
        if self._probed is None:
            self._probed = await probe_cached(self._state_dir, self._user)
        return self._probed

    async def start(self, launch: Launch, resources: HostResources, *, incoming: bool, paused: bool) -> QemuMachine:
        features = await self._features(incoming=incoming)
        present = record.read(resources.run_dir)
        if present is not None and record.find(present) is not None:
            raise ConflictError("QEMU of this VM runs on this host already", field="vm", value=launch.vm)
        if launch.machine == MICROVM and launch.accel == "tcg":
            features = replace(features, tsc_khz=await self._counter_rate(launch.vm))
        async with Rollback() as undo:
            with contextlib.ExitStack() as ours:
                handles = _open(launch, resources, ours)
                argv = qemu_argv(launch, resources, features, handles, incoming=incoming)
                child = await _spawn(argv, launch, resources, handles)
            undo.push("QEMU", child.kill)
            groups = () if resources.cgroup is None else tuple(cgroup.join(child.pid, resources.cgroup, launch.vm))
            undo.push("control group", lambda: cgroup.remove(groups))
            try:
                machine = await self._answering(argv, child, groups, launch, resources)
                undo.push("connection", machine.close)
                if not incoming and not paused:
                    await machine.cont()
            except UnavailableError as error:
                raise await _failure(child, launch, resources, error) from error
            finally:
                for secret in handles.secrets.values():
                    secret.unlink(missing_ok=True)
            undo.keep()
        return machine

    async def _features(self, *, incoming: bool) -> Features:
        found = await self._probe()
        if found.answers.refused and not self._allow_unsandboxed:
            raise UnsupportedError(
                f"QEMU does not start in its sandbox on this host ({found.answers.refused}), "
                "and no VM is started without it",
                field=ALLOW,
                value=False,
                remedy=f"Use a QEMU built with seccomp, or set {ALLOW} in the agent's configuration: then a "
                "guest that breaks out can do more.",
            )
        if incoming and not found.answers.suppress_vmdesc:
            raise UnsupportedError(
                f"QEMU {found.answers.version} on this host has no suppress-vmdesc: no VM can safely move here",
                remedy="Install QEMU 7.2 or newer.",
            )
        return found.features

    async def _counter_rate(self, vm: str) -> int | None:
        if self._tsc_khz is None:
            self._tsc_khz = await asyncio.to_thread(measure_khz)
        if self._tsc_khz is None:
            log.warning("VM %s: an emulated microvm may hang as it boots on a busy host whose TSC cannot be read", vm)
        return self._tsc_khz

    async def _answering(
        self, argv: list[str], child: Child, groups: tuple[Path, ...], launch: Launch, resources: HostResources
    ) -> QemuMachine:
        started = start_time(child.pid)
        if started is None:
            raise UnavailableError(f"QEMU of VM {launch.vm} ended at once")
        runtime = Runtime(
            pid=child.pid,
            start_time=started,
            argv_hash=record.argv_hash(argv),
            launch=launch,
            tls_dir=resources.tls_dir,
            cgroups=groups,
        )
        record.write(resources.run_dir, runtime)
        machine = QemuMachine(resources.run_dir, runtime, child)
        await machine.open()
        return machine

    async def adopt(self, vm: str, run_dir: Path) -> QemuMachine | None:
        runtime = record.read(run_dir)
        if runtime is None or runtime.launch.vm != vm:
            return None
        process = record.find(runtime)
        if process is None:
            cgroup.remove(runtime.cgroups)
            record.clear(run_dir, runtime.pid)
            return None
        machine = QemuMachine(run_dir, runtime, process)
        try:
            await machine.open()
            await machine.settle()
        except BaseException:
            await machine.close()
            if not process.alive:
                return None
            raise
        return machine

    async def processes(self) -> list[QemuProcess]:
        found = await asyncio.to_thread(record.find_all)
        return [QemuProcess(vm, process.pid, process.kill) for vm, process in found]


async def _failure(child: Child, launch: Launch, resources: HostResources, error: SeraiError) -> HostError:
    """Why QEMU did not come up: its own last words, if it is gone."""
    # A QEMU that gives up closes its socket a moment before it is gone: its last words are worth that moment.
    try:
        async with time_limit(LAST_WORDS):
            await child.exited()
    except TimeoutError:
        return HostError(f"QEMU of VM {launch.vm} started and did not answer: {error.info.message}")
    code = await child.wait()
    record.clear(resources.run_dir, child.pid)
    words = " ".join(_words(record.log_tail(resources.run_dir))) or "it said nothing"
    return HostError(f"QEMU could not start VM {launch.vm} (code {code}): {words}")


def _words(log_text: str) -> list[str]:
    """QEMU's lines without the time and its own name before each."""
    lines = [line.partition("qemu-system-x86_64: ") for line in log_text.splitlines() if line.strip()]
    return [(rest or head).strip() for head, _, rest in lines]


async def _spawn(argv: list[str], launch: Launch, resources: HostResources, handles: Handles) -> Child:
    passed = [handles.qmp, handles.console, handles.qga, *handles.disks.values()]
    passed += [resources.taps[vnic.index] for vnic in launch.vnics]
    if handles.seed is not None:
        passed.append(handles.seed)
    uid, gid = owner(resources.user)
    return await spawn(
        argv,
        user=uid,
        group=gid,
        extra_groups=accel_groups(launch.accel),
        pass_fds=passed,
        stdout=resources.run_dir / record.LOG,
        stderr=resources.run_dir / record.LOG,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"},
        cwd="/",
        umask=0o077,
        descriptors=DESCRIPTORS,
    )


def _open(launch: Launch, resources: HostResources, ours: contextlib.ExitStack) -> Handles:
    """Open all that QEMU is handed; what is open here closes with `ours`."""
    run_dir = resources.run_dir
    uid, gid = owner(resources.user)
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(run_dir, -1, gid)
    # QEMU passes through to its secrets; it can neither list the folder nor write to it.
    run_dir.chmod(0o710)
    (run_dir / record.LOG).unlink(missing_ok=True)
    sockets = [_listen(run_dir / name, ours) for name in record.SOCKETS]
    disks = {}
    secrets = {}
    for disk in launch.disks:
        if isinstance(disk.source, IscsiDisk):
            secrets[disk.index] = run_dir / f"disk{disk.index}.chap"
            _write_secret(secrets[disk.index], disk.source.password.get_secret_value(), uid, gid)
        elif disk.index in resources.disks:
            disks[disk.index] = _open_file(resources.disks[disk.index], os.O_RDWR, ours)
    seed = None if resources.seed is None else _open_file(resources.seed, os.O_RDONLY, ours)
    return Handles(sockets[0], sockets[1], sockets[2], disks, seed, secrets)


def _listen(path: Path, ours: contextlib.ExitStack) -> int:
    path.unlink(missing_ok=True)
    listener = ours.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(1)
    return listener.fileno()


def _open_file(path: Path, flags: int, ours: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path} cannot be opened: {error.strerror}", field="disks", value=path) from error
    ours.callback(os.close, descriptor)
    return descriptor


def _write_secret(path: Path, secret: str, uid: int, gid: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        os.write(descriptor, secret.encode())
        os.fchown(descriptor, uid, gid)
    finally:
        os.close(descriptor)
