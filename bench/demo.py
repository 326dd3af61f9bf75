"""The main job, as `script/demo` shows it: every promise is a check, every figure has the bare one beside it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.raw_qmp import Bare, Node
from bench.report import BrokenError, Report, reason
from bench.stats import machine
from bench.workload import Guest, TcpEcho
from serai.client import context as contexts
from serai.client.http import Client
from serai.lab import enter
from serai.lab.down import down
from serai.lab.probe import BOTH, Prober
from serai.lab.samples import Kind, ProbeReport
from serai.lab.state import LabFolder
from serai.lab.up import up
from serai.lib import namespace
from serai.lib.process import run
from serai.schema.errors import SeraiError
from serai.schema.host import HostState
from serai.schema.ids import HostName, ImageId, NetworkId, PoolId
from serai.schema.image import ImageCreate, ImageSource, ImageSpec
from serai.schema.job import Job, JobState
from serai.schema.vm import CloudInit, DiskSpec, Vm, VmCreate, VmMigrate, VmSpec, VnicSpec

LAB = "demo"
REPORT = Path("build/demo-report.json")
SERAI = str(Path(sys.executable).with_name("serai"))
LINK_RATE = 10**9
GUEST_MEMORY = 128 << 20
BARE_ADDRESS = "10.77.0.251"
GREETING = "written by user-data"
USER_DATA = f"#cloud-config\nwrite_files:\n- path: /etc/motd.d/serai\n  content: {GREETING}\n"
SETTLE = 1.0
"""Seconds of probing before and after a move, so that it is seen from quiet to quiet."""
LONGEST_OUTAGE = 3000.0
"""Milliseconds. TCP sends again after 0.2, 0.6, 1.4 and 3 s: from there on people call it an interruption."""
TO_ITS_END = "the demo ran to its end"


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
    await done(client, await client.call("image.create", body=ImageCreate(name=recipe, spec=spec, host=HostName("h1"))))


def tiny_vm(name: str) -> VmCreate:
    """The demo's guest: 128 MB, one vCPU, a shared disk, writing 4 MB/s in 2 MB of memory."""
    spec = VmSpec(
        image=ImageId("tiny"),
        cpus=1,
        memory=GUEST_MEMORY,
        disks=[DiskSpec(pool=PoolId("shared0"), size=64 << 20)],
        vnics=[VnicSpec(network=NetworkId("lan"))],
        cmdline="serai.mem=4:2",
        host=HostName("h1"),
    )
    return VmCreate(name=name, spec=spec)


async def migrate(client: Client, vm: str, to: str) -> tuple[Job, float]:
    """One move through the API; the job and the seconds from the answer until the VM ran on the destination.

    The lab has one clock for the source, which says when, and for us.
    """
    job = await client.call("vm.migrate", vm, body=VmMigrate(to=HostName(to)))
    began = datetime.now(UTC)
    ended = await done(client, job)
    resumed = (ended.result or {}).get("resumed")
    if resumed is None:
        raise RuntimeError(f"the move of {vm} has no figures: who measured it was gone before telling")
    return ended, (datetime.fromisoformat(resumed) - began).total_seconds()


@contextlib.asynccontextmanager
async def probing(lab: str, address: str, kinds: Sequence[Kind] = BOTH) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """A probe of an address every 2 ms from a node of its own; call what is yielded for its report."""
    prober = await Prober.start(lab, address, kinds=kinds)
    async with prober:
        await prober.answered()
        await asyncio.sleep(SETTLE)

        async def stop() -> Any:
            await asyncio.sleep(SETTLE)
            return await prober.stop()

        yield stop


def answers_again(seen: ProbeReport) -> tuple[bool, str]:
    """Whether each kind of request was answered to the end, with no gap longer than LONGEST_OUTAGE; and the longest."""
    silent = sorted({gap.kind for gap in seen.outages if not gap.ended})
    longest = f"longest gap in replies {seen.worst_ms:.0f} ms, {seen.lost} of {seen.sent} lost"
    if silent:
        return False, f"no reply to {', '.join(silent)} at the end; {longest}"
    return seen.worst_ms <= LONGEST_OUTAGE, longest


async def create(client: Client, lab: str, report: Report) -> tuple[Vm, Guest]:
    """A running VM that answers."""
    say("A VM on h1, its disk in pool shared0")
    with report.vital("the VM answers at its address") as told:
        began = time.monotonic()
        await done(client, await client.call("vm.create", body=tiny_vm("web1")))
        vm: Vm = await client.call("vm.show", "web1")
        guest = Guest(lab, str(vm.spec.vnics[0].ip))
        await guest.up()
        told.kept(True, f"{guest.address}, {time.monotonic() - began:.1f} s after the request")
    return vm, guest


async def main_job(client: Client, lab: str, report: Report) -> Vm:
    """Create a VM, move it alive, and check all that must hold."""
    vm, guest = await create(client, lab, report)
    say("vm migrate web1 --to h2, seen from a third host")
    with report.vital("it moves to h2, watched all along"):
        boot_id, mac = await guest.boot_id(), await mac_of(lab, guest)
        await guest.write_disk()
        async with TcpEcho(lab, guest.address) as echo:
            await echo.more(3)
            async with probing(lab, guest.address) as stop:
                job, whole = await migrate(client, "web1", "h2")
                seen = await stop()
            with report.promise("its TCP connection lives") as told:
                await echo.more(3)
                told.kept(True, f"{echo.answered} answers in order")
        figures = ("total_s", "downtime_ms", "rounds", "bytes_sent", "phases", "mode")
        report.migration = {
            "outage_ms": round(seen.worst_ms, 1),
            "until_it_runs_s": round(whole, 3),
            **{key: (job.result or {}).get(key) for key in figures},
        }
    with report.promise("it answers again, seen from outside") as told:
        told.kept(*answers_again(seen))
    await moved(client, lab, report, vm, guest, boot_id=boot_id, mac=mac)
    return vm


async def moved(
    client: Client, lab: str, report: Report, vm: Vm, guest: Guest, *, boot_id: str, mac: str
) -> None:  # fmt: skip
    """What must hold of a VM that was moved to h2; `boot_id` and `mac` as they were before."""
    with report.promise("it runs on h2") as told:
        after: Vm = await client.call("vm.show", "web1")
        told.kept(after.status.host == "h2" and after.status.state == "running", str(after.status.state))
    with report.promise("its boot id stayed") as told:
        found = await guest.boot_id()
        told.kept(found == boot_id, found)
    with report.promise("its MAC and address stayed") as told:
        found = await mac_of(lab, guest)
        told.kept(found == mac == vm.spec.vnics[0].mac, f"{found} {guest.address}, as a third host sees it")
    with report.promise("its disk's checksums hold") as told:
        disk = await guest.stop_disk()
        told.kept(disk.errors == 0 and disk.verified > 0, f"{disk.verified} verified, {disk.errors} errors")
    with report.promise("there is one copy of it") as told:
        counts = running_copies(lab, vm.id)
        told.kept(counts == {"h1": 0, "h2": 1, "h3": 0}, str(counts))


async def mac_of(lab: str, guest: Guest) -> str:
    """The MAC that answers at a guest's address, asked for anew from the probe's node."""
    netns = LabFolder.of(lab).load().plan.netns("probe")
    await run(["ip", "-n", netns, "neigh", "flush", "to", guest.address])
    await guest.uptime()
    shown = (await run(["ip", "-n", netns, "neigh", "show", "to", guest.address])).text
    found = re.search(r"lladdr (\S+)", shown)
    if found is None:
        raise RuntimeError(f"nobody has the address {guest.address}: {shown.strip()}")
    return found[1]


def running_copies(lab: str, vm: str) -> dict[str, int]:
    """QEMU processes of a VM on each host."""
    plan = LabFolder.of(lab).load().plan
    found = {}
    for host in plan.hosts:
        lines = [_cmdline(pid) for pid in namespace.processes_in(plan.netns(host))]
        found[host] = sum(1 for line in lines if line.startswith("qemu-system") and f"guest={vm}" in line)
    return found


def _cmdline(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


async def bare_job(client: Client, lab: str, report: Report) -> None:
    """The same move by a bare QMP script."""
    say("The same move by a bare QMP script")
    with report.promise("the bare script's VM answers again, too") as told:
        bare = bare_pair(await client.call("vm.show", "web1"), lab)
        try:
            await asyncio.to_thread(bare.start, "h1")
            await Guest(lab, BARE_ADDRESS).up()
            async with probing(lab, BARE_ADDRESS) as stop:
                figures = await asyncio.to_thread(bare.migrate, "h2")
                seen = await stop()
        finally:
            await asyncio.to_thread(bare.stop)
        report.bare = {"outage_ms": round(seen.worst_ms, 1), **figures}
        told.kept(*answers_again(seen))


def bare_pair(vm: Vm, lab: str) -> Bare:
    """The bare twin of a VM that runs now: the same command line by hand."""
    folder = LabFolder.of(lab)
    state = folder.load()
    nodes = {
        host: Node(host, tuple(enter.prefix(folder, state, host)), str(state.plan.address(host, "san")))
        for host in state.plan.hosts
    }
    template = psutil.Process(vm.status.pid).cmdline()
    return Bare(
        template, nodes, nodes["h1"], Path(tempfile.mkdtemp(prefix="serai-bare-", dir="/var/tmp")), BARE_ADDRESS
    )


async def debian_job(client: Client, lab: str, report: Report) -> None:
    """A Debian guest with cloud-init, created and moved."""
    say("A Debian guest")
    with report.vital("the Debian guest took its cloud-init seed") as told:
        key = await ssh_key(REPORT.parent / "demo-ssh")
        await build_image(client, "debian")
        spec = VmSpec(
            image=ImageId("debian"),
            cpus=2,
            memory=768 << 20,
            disks=[DiskSpec(pool=PoolId("shared0"), size=4 << 30)],
            vnics=[VnicSpec(network=NetworkId("lan"))],
            cloud_init=CloudInit(ssh_keys=[key.with_suffix(".pub").read_text().strip()], user_data=USER_DATA),
        )
        await done(client, await client.call("vm.create", body=VmCreate(name="deb1", spec=spec)))
        vm: Vm = await client.call("vm.show", "deb1")
        name = await first_login(lab, key)
        told.kept(name == "deb1", f"hostname {name}, by SSH with its key")
    with report.promise("its user-data was carried out") as told:
        written = await ssh(lab, key, "sudo cloud-init status --wait > /dev/null; cat /etc/motd.d/serai")
        told.kept(written == GREETING, written)
    with report.vital("the Debian guest moved alive") as told:
        before = await ssh(lab, key, "cat /proc/sys/kernel/random/boot_id")
        # Debian has no echo server of its own for UDP; ping is answered by its kernel.
        async with probing(lab, str(vm.spec.vnics[0].ip), [Kind.ICMP]) as stop:
            job, _ = await migrate(client, "deb1", "h2" if vm.status.host == "h3" else "h3")
            seen = await stop()
        report.migration["debian"] = {"outage_ms": round(seen.worst_ms, 1), **(job.result or {})}
        after = await ssh(lab, key, "cat /proc/sys/kernel/random/boot_id")
        again, detail = answers_again(seen)
        told.kept(again and after == before, detail if after == before else f"its boot id was {before}, is {after}")


async def ssh_key(folder: Path) -> Path:
    """A key of the demo's own; one from an earlier run will do."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    if not key.exists():
        await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    return key


async def ssh(lab: str, key: Path, command: str) -> str:
    """What a command in the Debian guest prints."""
    argv = [SERAI, "--context", lab, "vm", "ssh", "-i", str(key), "debian@deb1", "--", command]
    return (await run(argv, timeout=180)).text.strip()


async def first_login(lab: str, key: Path) -> str:
    """The guest's name, once it lets us in: its first start takes a while."""
    deadline = time.monotonic() + 180
    while True:
        try:
            return await ssh(lab, key, "hostname")
        except SeraiError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(1)


async def demo(lab: str, full: bool, report: Report) -> None:
    """All of it, the lab taken down at the end whatever happens. What fails is in the report."""
    say("A lab of three hosts")
    try:
        with report.vital("the lab is up") as told:
            began = time.monotonic()
            await down(lab)
            await up(lab, 3, link_rate=LINK_RATE, say=lambda text: print(f"  {text}", flush=True))
            client = Client(contexts.resolve(lab)[1])
            hosts = [row async for row in client.items("host.list")]
            states = {host.name: host.status.state for host in hosts}
            up_now = list(states.values()) == [HostState.ONLINE] * 3
            told.kept(up_now, f"{time.monotonic() - began:.1f} s" if up_now else str(states))
        facts = hosts[0].status.facts
        report.machine |= {"qemu": facts.qemu_version, "accel": facts.accel}
        async with client:
            await show(client, lab, full, report)
    except BrokenError as error:
        report.check(TO_ITS_END, False, f"not without this: {error}")
    finally:
        with report.promise("the lab is gone without a trace") as told:
            await down(lab)
            left = namespace.names(f"serai-{lab}-")
            told.kept(not left and not LabFolder.of(lab).path.exists(), ", ".join(left))


async def show(client: Client, lab: str, full: bool, report: Report) -> None:
    """What is shown in the lab."""
    say("The tiny guest's image")
    with report.vital("the tiny guest's image is there"):
        await build_image(client, "tiny")
    await main_job(client, lab, report)
    await bare_job(client, lab, report)
    if full:
        await debian_job(client, lab, report)
    with report.promise("the VM is deleted"):
        await done(client, await client.call("vm.delete", "web1", query={"force": True}))


@contextlib.contextmanager
def own_contexts() -> Iterator[None]:
    """A context file of the demo's own: whatever the user's commands speak to, they go on speaking to."""
    before = os.environ.get(contexts.ENV_FILE)
    with tempfile.TemporaryDirectory(prefix="serai-demo-") as folder:
        os.environ[contexts.ENV_FILE] = f"{folder}/own/contexts.yaml"
        try:
            yield
        finally:
            if before is None:
                del os.environ[contexts.ENV_FILE]
            else:
                os.environ[contexts.ENV_FILE] = before


def carry_out(lab: str, full: bool, report: Report) -> None:
    """Run the demo to its end, a failure's or a signal's included. What ended it early is in the report."""

    async def stoppable() -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await demo(lab, full, report)

    try:
        with own_contexts():
            asyncio.run(stoppable())
    except asyncio.CancelledError:
        report.check(TO_ITS_END, False, "ended by a signal")
    except Exception as error:
        report.check(TO_ITS_END, False, reason(error))
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run it and say how it went: 0 if every check held, else 1. The report is written in any case."""
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__)
    parser.add_argument("--full", action="store_true", help="move a Debian guest as well")
    parser.add_argument("--lab", default=LAB, help=f"name of its lab; one of that name is taken down (default: {LAB})")
    options = parser.parse_args(argv)
    # What an earlier run found must not pass for this one's.
    REPORT.unlink(missing_ok=True)
    report = Report(machine=machine(link_rate_bit_s=LINK_RATE))
    try:
        carry_out(options.lab, options.full, report)
    finally:
        report.write(REPORT)
    say("Report")
    print("\n".join(report.summary()))
    if report.failed:
        print("\nThese checks failed:", *report.failed, sep="\n  ", file=sys.stderr)
        return 1
    print(f"\nAll checks held. {REPORT} has the figures.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
