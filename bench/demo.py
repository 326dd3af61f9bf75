"""The main job, as `script/demo` shows it: every promise is a check, every figure has the bare one beside it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.raw_qmp import Bare, Node
from serai.client import context as contexts
from serai.client.http import Client
from serai.lab import enter
from serai.lab.down import down
from serai.lab.probe import BOTH, Prober
from serai.lab.samples import Kind
from serai.lab.state import LabFolder
from serai.lab.up import up
from serai.lab.workload import Guest, TcpEcho
from serai.lib import namespace
from serai.lib.process import run
from serai.schema.errors import SeraiError
from serai.schema.image import ImageCreate, ImageSource, ImageSpec
from serai.schema.job import Job, JobState
from serai.schema.vm import CloudInit, DiskSpec, Vm, VmCreate, VmMigrate, VmSpec, VnicSpec

LAB = "demo"
SERAI = str(Path(sys.executable).with_name("serai"))
LINK_RATE = 10**9
GUEST_MEMORY = 128 << 20
BARE_ADDRESS = "10.77.0.251"
SETTLE = 1.0
"""Seconds of probing before and after a move, so that it is seen from quiet to quiet."""


@dataclass
class Report:
    """What becomes build/demo-report.json."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    migration: dict[str, Any] = field(default_factory=dict)
    bare: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """Note one promise, kept or not, and say so."""
        self.checks.append({"name": name, "ok": ok, "detail": detail})
        print(f"  {'ok  ' if ok else 'FAIL'}  {name}" + (f": {detail}" if detail else ""), flush=True)

    @property
    def failed(self) -> list[str]:
        return [check["name"] for check in self.checks if not check["ok"]]


def say(text: str) -> None:
    """A heading."""
    print(f"\n{text}", flush=True)


async def done(client: Client, job: Job) -> Job:
    """Follow a job to its end. Raises what made it fail."""
    ended = await client.wait_job(job.id)
    if ended.state is not JobState.DONE:
        problem = ended.error.sentence() if ended.error is not None else ended.state
        raise SeraiError(f"{job.kind} of {job.target} ended {ended.state}: {problem}")
    return ended


async def build_image(client: Client, recipe: str) -> None:
    """Build an image on the first host, from the machine's cache where it is there."""
    spec = ImageSpec(source=ImageSource.BUILD, recipe=recipe)
    await done(client, await client.call("image.create", body=ImageCreate(name=recipe, spec=spec, host="h1")))


def tiny_vm(name: str) -> VmCreate:
    """The demo's guest: 128 MB, one vCPU, a shared disk, writing 4 MB/s in 2 MB of memory."""
    spec = VmSpec(
        image="tiny",
        cpus=1,
        memory=GUEST_MEMORY,
        disks=[DiskSpec(pool="shared0", size=64 << 20)],
        vnics=[VnicSpec(network="lan")],
        cmdline="serai.mem=4:2",
        host="h1",
    )
    return VmCreate(name=name, spec=spec)


async def migrate(client: Client, vm: str, to: str) -> tuple[Job, float]:
    """One move through the API; the job and the seconds from the answer until the VM ran on the destination.

    The lab has one clock for the source, which says when, and for us.
    """
    job = await client.call("vm.migrate", vm, body=VmMigrate(to=to))
    began = datetime.now(UTC)
    ended = await done(client, job)
    resumed = datetime.fromisoformat((ended.result or {})["resumed"])
    return ended, (resumed - began).total_seconds()


@contextlib.asynccontextmanager
async def probing(address: str, kinds: Sequence[Kind] = BOTH) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """A probe of an address every 2 ms from a node of its own; call what is yielded for its report."""
    prober = await Prober.start(LAB, address, kinds=kinds)
    async with prober:
        await prober.answered()
        await asyncio.sleep(SETTLE)

        async def stop() -> Any:
            await asyncio.sleep(SETTLE)
            return await prober.stop()

        yield stop


async def main_job(client: Client, report: Report) -> Vm:
    """Create a VM, move it alive, and check all that must hold."""
    say("A VM on h1, its disk in pool shared0")
    began = time.monotonic()
    await done(client, await client.call("vm.create", body=tiny_vm("web1")))
    vm: Vm = await client.call("vm.show", "web1")
    address = str(vm.spec.vnics[0].ip)
    guest = Guest(LAB, address)
    await guest.up()
    took = time.monotonic() - began
    report.check("the VM answers at its address", True, f"{address}, {took:.1f} s after the request")
    boot_id, mac = await guest.boot_id(), vm.spec.vnics[0].mac
    await guest.write_disk()
    say("vm migrate web1 --to h2, seen from a third host")
    async with TcpEcho(LAB, address) as echo:
        await echo.more(3)
        async with probing(address) as stop:
            job, whole = await migrate(client, "web1", "h2")
            seen = await stop()
        await echo.more(3)
        report.check("its TCP connection lives", echo.failure is None, f"{echo.answered} answers in order")
    result = job.result or {}
    after: Vm = await client.call("vm.show", "web1")
    outage = seen.worst_ms
    report.migration = {
        "outage_ms": round(outage, 1),
        "until_it_runs_s": round(whole, 3),
        **{key: result.get(key) for key in ("total_s", "downtime_ms", "rounds", "bytes_sent", "phases", "mode")},
    }
    report.check("it runs on h2", after.status.host == "h2" and after.status.state == "running", after.status.state)
    vnic = after.spec.vnics[0]
    report.check("its MAC and address stayed", vnic.mac == mac and str(vnic.ip) == address, f"{vnic.mac} {vnic.ip}")
    report.check("its boot id stayed", await guest.boot_id() == boot_id, boot_id)
    report.check("it answered again from outside", seen.lost < seen.sent // 2, f"{seen.lost} of {seen.sent} lost")
    disk = await guest.stop_disk()
    report.check("its disk's checksums hold", disk.errors == 0 and disk.verified > 0, f"{disk.verified} verified")
    counts = await running_copies(after.id)
    report.check("there is one copy of it", counts == {"h1": 0, "h2": 1, "h3": 0}, str(counts))
    return after


async def running_copies(vm: str) -> dict[str, int]:
    """QEMU processes of a VM on each host."""
    folder = LabFolder.of(LAB)
    state = folder.load()
    found = {}
    for host in state.plan.hosts:
        pids = namespace.processes_in(state.plan.netns(host))
        lines = [_cmdline(pid) for pid in pids]
        found[host] = sum(1 for line in lines if line.startswith("qemu-system") and f"guest={vm}" in line)
    return found


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


async def bare_job(vm: Vm, report: Report) -> None:
    """The same move by a bare QMP script."""
    say("The same move by a bare QMP script")
    bare = bare_pair(vm)
    try:
        await asyncio.to_thread(bare.start, "h1")
        await Guest(LAB, BARE_ADDRESS).up()
        async with probing(BARE_ADDRESS) as stop:
            figures = await asyncio.to_thread(bare.migrate, "h2")
            seen = await stop()
        report.bare = {"outage_ms": round(seen.worst_ms, 1), **figures}
        print(f"  total {figures['total_s']:.2f} s, outage {seen.worst_ms:.0f} ms")
    finally:
        await asyncio.to_thread(bare.stop)


def bare_pair(vm: Vm) -> Bare:
    """The bare twin of a VM that runs now: the same command line by hand."""
    folder = LabFolder.of(LAB)
    state = folder.load()
    nodes = {
        host: Node(host, tuple(enter.prefix(folder, state, host)), str(state.plan.address(host, "san")))
        for host in state.plan.hosts
    }
    template = Path(f"/proc/{vm.status.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    return Bare(
        template, nodes, nodes["h1"], Path(tempfile.mkdtemp(prefix="serai-bare-", dir="/var/tmp")), BARE_ADDRESS
    )


async def debian_job(client: Client, report: Report) -> None:
    """A Debian guest with cloud-init, created and moved."""
    say("A Debian guest")
    folder = Path("build/demo-ssh")
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    if not key.exists():
        await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    await build_image(client, "debian")
    spec = VmSpec(
        image="debian",
        cpus=2,
        memory=768 << 20,
        disks=[DiskSpec(pool="shared0", size=4 << 30)],
        vnics=[VnicSpec(network="lan")],
        cloud_init=CloudInit(ssh_keys=[key.with_suffix(".pub").read_text().strip()]),
        host="h1",
    )
    await done(client, await client.call("vm.create", body=VmCreate(name="deb1", spec=spec)))
    vm: Vm = await client.call("vm.show", "deb1")
    address = str(vm.spec.vnics[0].ip)

    async def ssh(command: str) -> str:
        argv = [SERAI, "--context", LAB, "vm", "ssh", "-i", str(key), "debian@deb1", "--", command]
        return (await run(argv, timeout=30)).text.strip()

    deadline = time.monotonic() + 180
    while True:
        try:
            name = await ssh("hostname")
            break
        except SeraiError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(1)
    report.check("the Debian guest took its cloud-init seed", name == "deb1", f"hostname {name}, by SSH with its key")
    before = await ssh("cat /proc/sys/kernel/random/boot_id")
    # Debian has no echo server of its own for UDP; ping is answered by its kernel.
    async with probing(address, [Kind.ICMP]) as stop:
        job, _ = await migrate(client, "deb1", "h3")
        seen = await stop()
    after = await ssh("cat /proc/sys/kernel/random/boot_id")
    report.check("the Debian guest moved alive", after == before, f"outage {seen.worst_ms:.0f} ms")
    report.migration["debian"] = {"outage_ms": round(seen.worst_ms, 1), **(job.result or {})}


def machine() -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
    return {"cpus": os.cpu_count(), "cpu": cpu, "kernel": platform.release(), "link_rate_bit_s": LINK_RATE}


async def demo(full: bool) -> Report:
    """All of it, the lab taken down at the end whatever happens."""
    report = Report(machine=machine())
    await down(LAB)
    say("A lab of three hosts")
    began = time.monotonic()
    await up(LAB, 3, link_rate=LINK_RATE, say=lambda text: print(f"  {text}", flush=True))
    try:
        report.check("the lab is up", True, f"{time.monotonic() - began:.1f} s")
        async with Client(contexts.resolve(LAB)[1]) as client:
            for host in [row async for row in client.items("host.list")]:
                facts = host.status.facts
                report.machine |= {"qemu": facts.qemu_version, "accel": facts.accel}
            say("The tiny guest's image")
            await build_image(client, "tiny")
            vm = await main_job(client, report)
            await bare_job(vm, report)
            if full:
                await debian_job(client, report)
            await done(client, await client.call("vm.delete", "web1", query={"force": True}))
    finally:
        await down(LAB)
    left = namespace.names(f"serai-{LAB}-")
    report.check("the lab is gone without a trace", not left and not LabFolder.of(LAB).path.exists(), ", ".join(left))
    return report


def summary(report: Report) -> None:
    """The report, for people."""
    ours, bare = report.migration, report.bare
    say("Report")
    accel = report.machine.get("accel")
    print(f"  {report.machine['cpus']} cores, QEMU {report.machine.get('qemu')} with {accel}, links 1 Gbit/s, TLS")
    if ours and bare:
        print("                             Serai   bare script")
        print(f"  outage from outside   {ours['outage_ms']:9.1f} {bare['outage_ms']:12.1f}  ms")
        print(f"  request until it runs {ours['until_it_runs_s']:9.2f} {bare['total_s']:12.2f}  s")
        print(f"  QEMU's own downtime   {ours['downtime_ms']:9} {bare['downtime_ms']:12}  ms (never the outage)")
        print(f"  {ours['rounds']} rounds, {ours['bytes_sent'] / 1e6:.0f} MB sent; phases on the source:")
        for phase, seconds in (ours["phases"] or {}).items():
            print(f"    {phase:<12}{seconds * 1000:9.1f} ms")


def main() -> int:
    """Run it and say how it went."""
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__)
    parser.add_argument("--full", action="store_true", help="move a Debian guest as well")
    options = parser.parse_args()
    try:
        report = asyncio.run(demo(options.full))
    except (SeraiError, RuntimeError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    summary(report)
    Path("build").mkdir(exist_ok=True)
    Path("build/demo-report.json").write_text(json.dumps(report.__dict__, indent=1) + "\n", encoding="utf-8")
    if report.failed:
        print(f"\nThese checks failed: {', '.join(report.failed)}", file=sys.stderr)
        return 1
    print("\nAll checks held. build/demo-report.json has the figures.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
