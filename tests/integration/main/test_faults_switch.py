"""Real processes, killed in a migration's last two phases: while the last state is sent, and once all of it was.

Both phases last milliseconds, so they are held, without luck. The source's agent is frozen in pre-copy: QEMU gets to
`pre-switchover`, with the VM stopped, and waits there for the agent's word. Then the destination's QEMU is frozen and
the agent goes on. Whether the last state fits into the sockets' buffers now decides: if not, the source stays in its
phase `switch`; if so, QEMU has sent all, and the source stays in `sent`, as its journal says. The link is too slow for
any pre-copy to end until the source's agent is frozen, however late this process gets to it.
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

import pytest

from serai.lab.state import LabFolder
from serai.lib import namespace, netlink, process
from serai.schema.job import Job, JobState
from serai.schema.vm import Vm, VmState

from .conftest import LINK_RATE, PATIENCE, Lab
from .invariant import vcpu_ticks

HOT: dict[str, Any] = {"cmdline": "serai.mem=100:1"}
"""Dirties 1 MB all along, as fast as it goes: so much of it, at the least most of it, is in the last state."""
LITTLE = "4096 65536 131072"
"""Limits of a TCP socket's buffer, in bytes (least, first, most): no last state of HOT fits."""
SLOW = 2_000_000
"""The source's rate in bit/s until its agent is frozen: pre-copy would take a minute and more."""
MUCH = "4096 33554432 33554432"
STOPPED_FOR = 0.5
"""Seconds without a tick of processor time after which a guest that is always busy is taken to be stopped."""


class Stand:
    """A migration of a VM from h1 to h2, held in its phase `switch` or `sent`; the destination's QEMU is frozen."""

    def __init__(self, lab: Lab, vm: Vm, boot_id: str) -> None:
        self.lab = lab
        self.vm = vm
        self.boot_id = boot_id
        self._frozen: set[int] = set()
        self.job: Job | None = None

    # --- processes ---

    @property
    def source(self) -> int:
        return self.lab.qemus(self.vm)["h1"][0]

    @property
    def destination(self) -> int:
        return self.lab.qemus(self.vm)["h2"][0]

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

    async def kill(self, role: str) -> None:
        """kill -9, and wait until it is gone."""
        record = self.lab.record(role)
        self.lab.kill(role)
        await until(lambda: not record.alive, f"the end of {role}")

    async def restart(self, role: str) -> None:
        """Start it again, and wait until it has taken over what it found."""
        log = LabFolder.of(self.lab.name).logs / f"{role.replace(' ', '-')}.log"

        def said() -> int:
            return log.read_bytes().count(b" is ready: ")

        before = said()
        await self.lab.restart(role)
        await until(lambda: said() > before, f"{role} to be ready")

    # --- the way into the phase ---

    async def begin(self) -> None:
        """Go as far as the source's QEMU goes without its agent, and freeze the destination's QEMU then."""
        agent = self.lab.record("agent h1").pid
        async with slow_link(self.lab, "h1"):
            self.job = await self.lab.migrate(self.vm.name, "h2")
            await until(lambda: self.outgoing() is not None, "the source's agent to start the move")
            before = received(self.destination)
            await until(lambda: received(self.destination) > before + (1 << 18), "the state's first bytes")
            self.freeze(agent)
        await self._stopped()
        self.freeze(self.destination)
        self.thaw(agent)
        await self.port_closed()

    async def _stopped(self) -> None:
        source = self.source
        ticks, since = vcpu_ticks(source), time.monotonic()
        deadline = since + PATIENCE
        while time.monotonic() < since + STOPPED_FOR:
            await asyncio.sleep(0.02)
            now = vcpu_ticks(source)
            assert now is not None, "the source's QEMU ended"
            if now != ticks:
                ticks, since = now, time.monotonic()
            assert time.monotonic() < deadline, "pre-copy does not converge"

    async def port_closed(self) -> None:
        """The source's agent has told QEMU to go on, and closed the VM's port: its phase is `switch`."""
        netns = LabFolder.of(self.lab.name).load().plan.netns("h1")
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
        found = journal(self.lab, "h1", "vm", self.vm.id)
        return None if found is None else found["outgoing"]

    def sent(self) -> bool:
        outgoing = self.outgoing()
        return outgoing is not None and bool(outgoing["sent"])

    def claim(self) -> str | None:
        """What the destination's journal says of the new epoch."""
        found = journal(self.lab, "h2", "lease", f"{self.vm.id}/{self.vm.status.epoch + 1}")
        return None if found is None else str(found["claim"])

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
        assert self.claim() == ("committed" if host == "h2" else "abandoned")

    async def stays(self, *, reason: str = "stayed on h1") -> None:
        """The job failed and says why; the VM goes on on the source."""
        ended = await self.ended()
        assert ended.state is JobState.FAILED
        assert ended.error is not None
        assert reason in ended.error.sentence()
        await self.runs_on("h1")

    async def moves(self) -> None:
        """The job is done; the VM goes on on the destination."""
        ended = await self.ended()
        assert ended.state is JobState.DONE, ended.error
        await self.runs_on("h2")


async def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


def received(pid: int) -> int:
    """Bytes that the host of a process has got over its migration link."""
    for line in Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth1":
            return int(counts.split()[0])
    raise AssertionError("the host has no eth1")


def journal(lab: Lab, host: str, kind: str, key: str) -> dict[str, Any] | None:
    """The newest record in a host's journal, read from its file; a line in mid-write does not count yet."""
    newest: dict[str, Any] | None = None
    content = (LabFolder.of(lab.name).host(host) / "state" / "journal").read_bytes().rstrip(b"\0")
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            found, name, data = json.loads(line.partition(b" ")[2])
            if (found, name) == (kind, key):
                newest = data
    return newest


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
async def held(lab: Lab, limits: str) -> AsyncIterator[Stand]:
    """A move in its phase `switch` (LITTLE) or `sent` (MUCH), with copies counted all along."""
    vm = await lab.create(**HOT)
    stand = Stand(lab, vm, await lab.guest(vm).boot_id())
    try:
        async with lab.watch(vm):
            async with buffers(lab, limits):
                await stand.begin()
            if limits == MUCH:
                await until(stand.sent, "the source to have sent all")
            assert stand.claim() == "offered"
            yield stand
    finally:
        stand.thaw_all()


async def test_destination_qemu_killed_while_the_last_state_is_sent(lab: Lab) -> None:
    async with held(lab, LITTLE) as stand:
        assert not stand.sent()
        os.kill(stand.destination, signal.SIGKILL)
        await stand.stays()
        assert not stand.sent()


async def test_destination_qemu_killed_with_all_sent_and_nothing_committed(lab: Lab) -> None:
    async with held(lab, MUCH) as stand:
        os.kill(stand.destination, signal.SIGKILL)
        await stand.stays(reason="signal 9")


@pytest.mark.parametrize("role", ["agent h1", "agent h2", "controller ctl"])
async def test_killed_with_all_sent_and_the_state_arrives_meanwhile(lab: Lab, role: str) -> None:
    async with held(lab, MUCH) as stand:
        await stand.kill(role)
        stand.thaw(stand.destination)
        if role != "agent h2":
            await until(lambda: stand.claim() == "committed", "the destination's commit")
        await stand.restart(role)
        await stand.moves()


async def test_the_sources_agent_killed_with_all_sent_and_the_state_arrives_afterwards(lab: Lab) -> None:
    async with held(lab, MUCH) as stand:
        await stand.kill("agent h1")
        await stand.restart("agent h1")
        assert stand.claim() == "offered"
        stand.thaw(stand.destination)
        await stand.moves()


@pytest.mark.parametrize("role", ["agent h2", "controller ctl"])
async def test_killed_with_all_sent_and_nobody_can_wait_for_the_state(lab: Lab, role: str) -> None:
    async with held(lab, MUCH) as stand:
        await stand.kill(role)
        await stand.restart(role)
        # A restarted controller gives the move up; a restarted agent cannot answer for a QEMU that is silent.
        await until(lambda: stand.claim() == "abandoned", "the offer to be turned down")
        stand.thaw_all()
        await stand.stays(reason="restarted" if role == "controller ctl" else "stayed on h1")
