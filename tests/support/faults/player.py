"""Does the actions of a sequence to a lab, and writes down what it did and what came of it.

Requests do not hold the sequence up: each is a task of its own, since a controller that stands still would stop all
else. What the requests lead to is looked at when the lab is settled: everything that was killed or frozen is brought
back, all jobs end, each VM runs, exactly once, and its guest's disk is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.faults.actions import REQUESTS, Action, Verb
from tests.support.faults.excuses import Excuses
from tests.support.faults.leftovers import leftovers
from tests.support.faults.requests import DISK, POOL, Requests
from tests.support.faults.subject import Subject, told
from tests.support.invariant import Watch
from tests.support.lab import Lab, serai_program
from tests.support.looking import until

from serai.client.http import Client
from serai.lab import services
from serai.lab.state import OWN_PATHS, LabFolder
from serai.lib import process
from serai.schema.errors import SeraiError
from serai.schema.ids import PoolId
from serai.schema.vm import DiskSpec, RestartPolicy, Vm, VmState

PATIENCE = 240.0
"""Seconds within which a repaired lab does what it is asked, on a machine that does other things too."""
WINDOW = 0.01
"""Seconds between two looks at a VM's copies: the watches must leave processors to what they watch."""
SPECS: dict[str, dict[str, Any]] = {
    "vm0": {"restart": RestartPolicy.ON_FAILURE},
    "vm1": {"restart": RestartPolicy.NEVER, "cmdline": "serai.mem=40:16"},
    "vm2": {"restart": RestartPolicy.ALWAYS, "cpus": 2},
}
"""Memory writers of which each move converges."""
UP_AGAIN = {
    VmState.DEFINED: "vm.start",
    VmState.STOPPED: "vm.start",
    VmState.CRASHED: "vm.start",
    VmState.PAUSED: "vm.resume",
}
SIGNALS = {
    Verb.KILL: signal.SIGKILL,
    Verb.FREEZE: signal.SIGSTOP,
    Verb.THAW: signal.SIGCONT,
    Verb.KILL_QEMU: signal.SIGKILL,
    Verb.FREEZE_QEMU: signal.SIGSTOP,
    Verb.THAW_QEMU: signal.SIGCONT,
}


class Player:
    """`client` asks what the sequence asks; it waits for a short time only."""

    def __init__(self, lab: Lab, client: Client) -> None:
        self.lab = lab
        self._requests = Requests(client)
        self.folder = LabFolder.of(lab.name)
        self.subjects: dict[str, Subject] = {}
        self.violations: list[str] = []
        self.log: list[str] = []
        self.excuses = Excuses(lab.name)
        self._began = time.monotonic()
        self._over = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()
        self._frozen: dict[str, list[tuple[int, int | None]]] = {}
        """QEMUs that were frozen: their pids and when each had started."""
        self._watches: dict[str, Watch] = {}

    def say(self, text: str) -> None:
        """Write down, with the time since the beginning."""
        line = f"{time.monotonic() - self._began:8.2f}  {text}"
        self.log.append(line)
        print(line, flush=True)

    def report(self, violation: str) -> None:
        """Write a violation down; the next `check` raises."""
        if violation not in self.violations:
            self.violations.append(violation)
            self.say(f"VIOLATION: {violation}")

    def _read_logs(self) -> None:
        """What a program did not expect is a violation too, whatever came of it."""
        for log in self.folder.logs.glob("*.log"):
            text = log.read_text(encoding="utf-8", errors="replace")
            place = text.find("Traceback (most recent call last)")
            if place >= 0:
                self.report(f"{log.name}: {text[max(0, place - 300) : place + 1500]}")

    def check(self) -> None:
        """Raises AssertionError if anything was found so far."""
        watched = [f"{label}: {line}" for label, watch in self._watches.items() for line in watch.violations]
        found = self.violations + watched
        assert not found, "\n".join(found)

    # --- the VMs ---

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[None]:
        """All VMs, watched and attended all along."""
        made = await asyncio.gather(*map(self._create, SPECS))
        self.subjects = {subject.label: subject for subject in made}
        async with contextlib.AsyncExitStack() as stack:
            for label, subject in self.subjects.items():
                self._watches[label] = await stack.enter_async_context(self._watch(subject.vm))
            tasks = [
                asyncio.create_task(self._attend(subject), name=f"disk of {label}")
                for label, subject in self.subjects.items()
            ]
            try:
                yield
            finally:
                # Each ends by itself: nothing that it has opened is left.
                self._over.set()
                await asyncio.gather(*tasks, *self._asking)

    async def _create(self, label: str) -> Subject:
        disks = [DiskSpec(pool=PoolId(POOL), size=DISK)]
        vm = await self.lab.create(host=None, disks=disks, **{"cmdline": "serai.mem=4:2", **SPECS[label]})
        self.say(f"{label} is {vm.name} ({vm.id}) on {vm.status.host}")
        return Subject(label, vm, self.lab.guest(vm), await self._volume(vm))

    async def _attend(self, subject: Subject) -> None:
        try:
            await subject.attend(self._over, self.report)
        except Exception as error:  # noqa: BLE001 - whatever it is: nobody looks after the disk from now on
            self.report(f"{subject.label}: nobody looks after its disk any more: {told(error)}")

    async def _volume(self, vm: Vm) -> Path:
        """The file of a VM's disk, as this process sees it."""
        pool = await self.lab.client.call("pool.show", POOL)
        (volume,) = [row async for row in self.lab.client.items("volume.list", {"vm": vm.name})]
        inside = Path(pool.status.path).relative_to(OWN_PATHS["state"])
        return self.folder.host(pool.spec.host) / "state" / inside / f"{volume.id}.raw"

    def _watch(self, vm: Vm) -> Watch:
        async def said() -> str | None:
            return (await self.lab.vm(vm.name)).status.reason or None

        return Watch(lambda: self.excuses.copies(vm.id), lambda: self.excuses.why_none_runs(vm.id), said, window=WINDOW)

    # --- one action ---

    async def play(self, action: Action) -> None:
        """Do it, and rest as long as it says. Raises AssertionError for what was found meanwhile."""
        self.say(str(action))
        if action.verb in REQUESTS:
            task = asyncio.create_task(self._ask(action))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        elif action.verb is Verb.SETTLE:
            await self.settle()
        elif action.target in self.subjects:
            self._to_qemu(action)
        elif action.verb is Verb.START_AGAIN:
            await self._start_again(action.target)
        else:
            await self._to_program(action)
        await asyncio.sleep(action.pause)
        self.check()

    async def _ask(self, action: Action) -> None:
        try:
            job = await self._requests.ask(action, self.subjects[action.target].vm.name)
        except SeraiError as error:
            self.say(f"  {action}: {told(error)}")
        except Exception as error:  # noqa: BLE001 - it belongs to the result
            self.report(f"{action}: the client broke: {error!r}")
        else:
            self.say(f"  {action}: job {job.id}")

    # --- faults ---

    async def _to_program(self, action: Action) -> None:
        record = self.lab.record(action.target)
        if not record.alive:
            self.say(f"  {action.target} is gone already")
            return
        os.kill(record.pid, SIGNALS[action.verb])
        if action.verb is Verb.THAW:
            self.excuses.well(action.target)
            return
        self.excuses.ill(action.target)
        if action.verb is Verb.KILL:
            await until(lambda: not record.alive, f"the end of {action.target}")

    async def _start_again(self, role: str) -> None:
        """Without waiting until it is ready: what is asked meanwhile has to bear it."""
        if self.lab.record(role).alive:
            self.say(f"  {role} runs")
        elif role.startswith("nats-server"):
            await self.lab.restart_bus()
        else:
            await services.Programs(self.folder, self.folder.load()).restart(role)
        self.excuses.well(role)

    def _to_qemu(self, action: Action) -> None:
        subject = self.subjects[action.target]
        if action.verb is Verb.THAW_QEMU:
            self._thaw_qemus(action.target)
            return
        pids = sorted(self.excuses.copies(subject.vm.id), key=lambda pid: (process.start_time(pid) or 0, pid))
        if not pids:
            self.say(f"  {action.target} has no QEMU")
            return
        pid = pids[0] if action.how == "oldest" else pids[-1]
        self.say(f"  QEMU {pid} of {pids} on {self.lab.host_of(pid)}")
        if action.verb is Verb.FREEZE_QEMU:
            self._frozen.setdefault(action.target, []).append((pid, process.start_time(pid)))
            self.excuses.ill(subject.vm.id)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGNALS[action.verb])

    def _thaw_qemus(self, label: str) -> None:
        for pid, start in self._frozen.pop(label, []):
            if process.start_time(pid) == start:
                os.kill(pid, signal.SIGCONT)
        self.excuses.well(self.subjects[label].vm.id)

    # --- settling ---

    async def settle(self) -> None:
        """Repair everything; then all jobs end, and each VM runs, once, with its disk. Raises AssertionError."""
        for label in list(self._frozen):
            self._thaw_qemus(label)
        for record in self.folder.load().processes:
            if record.alive:
                os.kill(record.pid, signal.SIGCONT)
        await self.repair()
        await asyncio.gather(*self._asking)
        await self._jobs_end()
        await asyncio.gather(*map(self._runs, self.subjects.values()))
        await asyncio.gather(*(subject.writes(PATIENCE) for subject in self.subjects.values()))
        self._read_logs()
        self.check()
        self.say(
            "settled: "
            + ", ".join(f"{one.label} boot {one.boots}, {one.moved} blocks" for one in self.subjects.values())
        )

    async def repair(self) -> None:
        """Bring back what of the lab's programs is gone, and wait for all hosts."""
        done = await process.run(
            [*serai_program(), "lab", "repair", "--name", self.lab.name], check=False, timeout=PATIENCE
        )
        self.say(f"repair: {done.text.strip()}{done.stderr.decode(errors='replace').strip()}")
        assert done.returncode == 0, "the lab could not be repaired"
        for role in self.excuses.all_ill():
            self.excuses.well(role)
        await self.lab.online("h1", "h2", "h3")

    async def _jobs_end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            jobs = [job async for job in self.lab.client.items("job.list", limit=500)]
            waiting = [job for job in jobs if not job.state.ended]
            if not waiting:
                break
            lines = [
                f"job {one.id} {one.kind} {one.target} {one.state}: waits for {one.waits_for!r}" for one in waiting
            ]
            assert time.monotonic() < deadline, "jobs do not end:\n" + "\n".join(lines)
            await asyncio.sleep(0.2)
        for job in jobs:
            if job.error is not None and job.error.code == "internal":
                self.report(f"job {job.id} {job.kind} {job.target}: a fault of ours: {job.error.sentence()}")

    async def _runs(self, subject: Subject) -> None:
        deadline = time.monotonic() + PATIENCE
        said = ""
        while True:
            vm = await self.lab.vm(subject.vm.name)
            verb = UP_AGAIN.get(vm.status.state)
            # What the controller shows may be what it knew before it was away: the guest itself is asked too.
            if vm.status.state is VmState.RUNNING and await subject.answers():
                break
            why = f"{vm.status.state} on {vm.status.host}: {vm.status.reason}; {said}"
            assert time.monotonic() < deadline, f"{subject.label} cannot be brought to running: {why}"
            if verb is not None:
                said = await self._try(verb, vm.name)
                self.say(f"  {subject.label} is {vm.status.state} ({vm.status.reason}); {said}")
            await asyncio.sleep(0.3)
        alone = {host: int(host == vm.status.host) for host in self.lab.hosts}
        await until(
            lambda: {host: len(pids) for host, pids in self.lab.qemus(vm).items()} == alone,
            f"{subject.label} to have one QEMU, on {vm.status.host}",
        )

    async def _try(self, verb: str, vm: str) -> str:
        try:
            job = await self.lab.client.wait_job((await self.lab.client.call(verb, vm)).id)
        except SeraiError as error:
            return f"{verb}: {told(error)}"
        return f"{verb}: {job.state} {job.error.sentence() if job.error else ''}"

    # --- the end ---

    async def close(self) -> None:
        """End the disk writers and delete the VMs; nothing of them is left anywhere."""
        subjects = self.subjects.values()
        await asyncio.gather(*(subject.close() for subject in subjects))
        # A disk that an edit took from its VM is a volume of its own from then on.
        disks = {disk.volume async for vm in self.lab.client.items("vm.list") for disk in vm.spec.disks}
        detached = {row.id async for row in self.lab.client.items("volume.list") if not disks & {row.name, row.id}}
        jobs = [await self.lab.client.call("vm.delete", one.vm.name, query={"force": True}) for one in subjects]
        await asyncio.gather(*map(self.lab.done, jobs))
        for row in [row async for row in self.lab.client.items("volume.list")]:
            if row.id in detached:
                await self.lab.done(await self.lab.client.call("volume.delete", row.id))
        vms = [subject.vm.id for subject in subjects]
        deadline = time.monotonic() + PATIENCE
        while found := await leftovers(self.lab, vms):
            assert time.monotonic() < deadline, "left behind:\n" + "\n".join(found)
            await asyncio.sleep(0.5)
        self.say("nothing is left")
