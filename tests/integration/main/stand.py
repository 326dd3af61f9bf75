"""A move that is held in one of its phases, without luck.

`prepared` and `setup`: the source's agent is frozen (SIGSTOP) before it is asked, so all that is there is the
destination, ready; then the destination's QEMU is frozen and the agent goes on: the source's QEMU connects, and waits
in `setup` for a partner that says nothing.

`switch` and `sent` last milliseconds. The source's agent is frozen in pre-copy: QEMU gets to `pre-switchover`, with the
VM stopped, and waits there for the agent's word. Then the destination's QEMU is frozen and the agent goes on. Whether
the last state fits into the sockets' buffers now decides: if not, the source stays in its phase `switch`; if so, QEMU
has sent all, and the source stays in `sent`, as its journal says. The link is too slow for any pre-copy to end until
the source's agent is frozen, however late this process gets to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.invariant import vcpu_time
from tests.support.lab import LINK_RATE, Lab
from tests.support.looking import ESTABLISHED, PATIENCE, journal, received, states, streaming, until

from serai.lab.state import LabFolder
from serai.lib import namespace, netlink, process
from serai.schema.job import Job, JobState
from serai.schema.vm import Vm, VmState

HOT: dict[str, Any] = {"cmdline": "serai.mem=100:1"}
"""Dirties 1 MB all along, as fast as it goes: so much of it, at the least most of it, is in the last state."""
LITTLE = "4096 65536 131072"
"""Limits of a TCP socket's buffer, in bytes (least, first, most): no last state of HOT fits."""
SLOW = 2_000_000
"""The source's rate in bit/s until its agent is frozen: pre-copy would take a minute and more."""
MUCH = "4096 33554432 33554432"
STILL = 0.5
"""Seconds in which a guest that always works would have run, or waited for a processor."""


class Stand:
    """A migration of a VM, held in one of its phases."""

    def __init__(self, lab: Lab, vm: Vm, boot_id: str, to: str) -> None:
        self.lab = lab
        self.vm = vm
        self.boot_id = boot_id
        self.here = str(vm.status.host)
        self.to = to
        self._frozen: set[int] = set()
        self.job: Job | None = None

    # --- processes ---

    @property
    def source(self) -> int:
        return self.lab.qemus(self.vm)[self.here][0]

    @property
    def destination(self) -> int:
        return self.lab.qemus(self.vm)[self.to][0]

    def freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._frozen.add(pid)

    def thaw(self, pid: int) -> None:
        os.kill(pid, signal.SIGCONT)
        self._frozen.discard(pid)

    def thaw_all(self) -> None:
        for pid in list(self._frozen):
            with contextlib.suppress(ProcessLookupError):
                self.thaw(pid)

    # --- the way into the phase ---

    @property
    def _agent(self) -> int:
        return self.lab.record(f"agent {self.here}").pid

    async def prepare(self) -> None:
        """Phase `prepared`: the destination is ready, and the source has not been asked."""
        self.freeze(self._agent)
        self.job = await self.lab.migrate(self.vm.name, self.to)
        await until(self._prepared, "the destination to be prepared")

    def _prepared(self) -> bool:
        found = journal(self.lab.name, self.to, "vm", self.vm.id)
        return found is not None and bool(found["incoming"]["port"])

    async def connect(self) -> None:
        """Phase `setup`: the source's QEMU has a connection, and no answer."""
        await self.prepare()
        self.freeze(self.destination)
        self.thaw(self._agent)
        await until(lambda: streaming(self.source, states=ESTABLISHED), "the source's QEMU to connect")
        assert self.outgoing() is not None

    async def switch(self) -> None:
        """Go as far as the source's QEMU goes without its agent, and freeze the destination's QEMU then."""
        async with slow_link(self.lab, self.here):
            self.job = await self.lab.migrate(self.vm.name, self.to)
            await self.lab.in_precopy(self.vm, self.to)
            self.freeze(self._agent)
        await self._stopped()
        self.freeze(self.destination)
        self.thaw(self._agent)
        await self.port_closed()

    async def _stopped(self) -> None:
        """The guest stands still: it does not run, nothing of its QEMU waits for a processor, and no state is sent."""

        def look() -> tuple[object, ...]:
            return vcpu_time(self.source), received(self.destination), states(self.source)

        seen, since = look(), time.monotonic()
        deadline = since + PATIENCE
        while time.monotonic() < since + STILL:
            await asyncio.sleep(0.02)
            now = look()
            if now != seen or now[-1] != {"S"}:
                seen, since = now, time.monotonic()
            assert time.monotonic() < deadline, "pre-copy does not converge"

    async def port_closed(self) -> None:
        """The source's agent has told QEMU to go on, and closed the VM's port: its phase is `switch`."""
        netns = LabFolder.of(self.lab.name).load().plan.netns(self.here)
        tap = f"sv{self.vm.id[:10]}-0"
        deadline = time.monotonic() + PATIENCE
        while True:
            shown = await process.run(["ip", "-n", netns, "-j", "-d", "link", "show", tap])
            if json.loads(shown.stdout)[0]["linkinfo"]["info_slave_data"]["state"] != "forwarding":
                return
            assert time.monotonic() < deadline, "the source's agent does not begin the switch"
            await asyncio.sleep(0.02)

    def outgoing(self) -> dict[str, Any] | None:
        """The source's journal on this move."""
        found = journal(self.lab.name, self.here, "vm", self.vm.id)
        return None if found is None else found["outgoing"]

    def sent(self) -> bool:
        outgoing = self.outgoing()
        return outgoing is not None and bool(outgoing["sent"])

    def claim(self) -> str | None:
        """What the destination's journal says of the new epoch."""
        found = journal(self.lab.name, self.to, "lease", f"{self.vm.id}/{self.vm.status.epoch + 1}")
        return None if found is None else str(found["claim"])

    async def waits_for(self, text: str) -> None:
        """What `serai job show` says that the move waits for."""
        assert self.job is not None
        deadline = time.monotonic() + PATIENCE
        while (job := await self.lab.client.call("job.show", self.job.id)).waits_for != text:
            assert time.monotonic() < deadline, f"it waits for {job.waits_for!r}"
            await asyncio.sleep(0.05)

    # --- the outcome ---

    async def ended(self) -> Job:
        assert self.job is not None
        async with asyncio.timeout(PATIENCE):
            return await self.lab.client.wait_job(self.job.id)

    async def runs_on(self, host: str) -> None:
        """It is the VM that it was, on that host alone, and both journals agree."""
        after = await self.lab.until(
            self.vm.name, lambda now: now.status.state is VmState.RUNNING and now.status.host == host
        )
        assert after.status.restarts == 0
        assert await self.lab.guest(self.vm).boot_id() == self.boot_id
        alone = {name: int(name == host) for name in ("h1", "h2", "h3")}
        await until(
            lambda: {name: len(pids) for name, pids in self.lab.qemus(self.vm).items()} == alone, "the other copy's end"
        )
        assert self.claim() == ("committed" if host == self.to else "abandoned")

    async def stays(self, *, reason: str = "") -> None:
        """The job failed and says why; the VM goes on on the source."""
        reason = reason or f"stayed on {self.here}"
        ended = await self.ended()
        assert ended.state is JobState.FAILED
        assert ended.error is not None
        assert reason in ended.error.sentence()
        await self.runs_on(self.here)

    async def cancel(self) -> None:
        assert self.job is not None
        await self.lab.client.call("job.cancel", self.job.id)

    async def is_cancelled(self) -> None:
        """So the job says; the VM goes on on the source."""
        ended = await self.ended()
        assert ended.state is JobState.CANCELLED, ended.error
        await self.runs_on(self.here)

    async def moves(self) -> None:
        """The job is done; the VM goes on on the destination."""
        ended = await self.ended()
        assert ended.state is JobState.DONE, ended.error
        await self.runs_on(self.to)


@contextlib.asynccontextmanager
async def buffers(lab: Lab, limits: str) -> AsyncIterator[None]:
    """Limits of what waits in TCP sockets of h1 (to be sent) and h2 (to be read) that are made meanwhile."""
    plan = LabFolder.of(lab.name).load().plan
    files = {"h1": Path("/proc/sys/net/ipv4/tcp_wmem"), "h2": Path("/proc/sys/net/ipv4/tcp_rmem")}
    before = {host: await namespace.in_netns(plan.netns(host), file.read_text) for host, file in files.items()}

    async def put(values: dict[str, str]) -> None:
        for host, value in values.items():
            await namespace.in_netns(plan.netns(host), lambda file=files[host], text=value: file.write_text(text))  # type: ignore[misc] # the defaults bind the loop's values

    await put(dict.fromkeys(files, limits))
    try:
        yield
    finally:
        await put(before)


@contextlib.asynccontextmanager
async def slow_link(lab: Lab, host: str) -> AsyncIterator[None]:
    """What a host sends on its migration link goes at the rate SLOW meanwhile."""
    netns = LabFolder.of(lab.name).load().plan.netns(host)
    await namespace.in_netns(netns, lambda: netlink.shape("eth1", SLOW))
    try:
        yield
    finally:
        await namespace.in_netns(netns, lambda: netlink.shape("eth1", LINK_RATE))


@contextlib.asynccontextmanager
async def stand(lab: Lab, host: str, to: str, **spec: Any) -> AsyncIterator[Stand]:
    """A VM that is about to move, with its copies counted all along; in the end nothing stands still."""
    vm = await lab.create(host=host, **{**HOT, **spec})
    found = Stand(lab, vm, await lab.guest(vm).boot_id(), to)
    try:
        async with lab.watch(vm):
            yield found
    finally:
        found.thaw_all()


@contextlib.asynccontextmanager
async def held(lab: Lab, limits: str, **spec: Any) -> AsyncIterator[Stand]:
    """A move in its phase `switch` (LITTLE) or `sent` (MUCH)."""
    async with stand(lab, "h1", "h2", **spec) as found:
        async with buffers(lab, limits):
            await found.switch()
        if limits == MUCH:
            await until(found.sent, "the source to have sent all")
        assert found.claim() == "offered"
        yield found
