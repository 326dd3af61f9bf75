"""`python -m bench.control [start|job|list|rest …] [--quick]`: what the control plane adds, and what it costs at rest.

- start: from the API request `vm.start` of a stopped VM until its vCPUs run (the host's own word, by the lab's one
  clock), beside the same command line started by hand (from before its spawn until QEMU answered `cont`), in turn.
- job: from a job's creation to the start of its first step, by the job's own times; beside it one durable transaction
  of the bare database.
- list: `GET /v1/vms?limit=100` over loopback, connection kept, from a controller that has 1,000 VMs stored; beside it
  the bare query of the same rows.
- rest: processor time and memory of a host agent that has 20 running VMs, each with a disk in a pool of that same host,
  over a minute; children that it started and waited for count as its own. Beside it their QEMUs and the iSCSI target.

Results go to bench/results/control.json, each part with its date and machine; parts that were not asked for keep their
last figures there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import sqlite3
import tempfile
import time
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench import demo
from bench.demo import bare_pair, build_image, done, tiny_vm
from bench.stats import RESULTS, machine, median_difference, run, summary, write
from bench.workload import Guest
from serai.app.controller import ControllerConfig, running, standard_extras
from serai.client import context as contexts
from serai.client.http import Client
from serai.controller.store import Store
from serai.lab.down import down
from serai.lab.state import LabFolder
from serai.lab.up import up
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.membus import MemBus
from serai.schema.errors import NotFoundError
from serai.schema.ids import HostName, ImageId, NetworkId, PoolId, VmId
from serai.schema.network import Network, NetworkSpec, NetworkStatus
from serai.schema.vm import DiskSpec, Vm, VmCreate, VmSpec, VmState, VmStatus, VmStop, VnicSpec
from serai.schema.volume import PoolCreate, PoolSpec

LAB = "control"
PARTS = ("start", "job", "list", "rest")
STORED = 1000
PAGE = 100
AT_REST = 20
REST_MEMORY = 128 << 20


async def start(client: Client, pairs: int) -> dict[str, Any]:
    """Starts through the API and by hand, in turn."""
    await done(client, await client.call("vm.create", body=tiny_vm("web1")))
    bare = bare_pair(await client.call("vm.show", "web1"), LAB)
    ours, hand = [], []
    try:
        await asyncio.to_thread(bare.start, "h1")
        for _ in range(pairs):
            await done(client, await client.call("vm.stop", "web1", body=VmStop(force=True)))
            asked = datetime.now(UTC)
            await done(client, await client.call("vm.start", "web1"))
            vm: Vm = await client.call("vm.show", "web1")
            if vm.status.since is None:
                raise RuntimeError("the VM does not say since when it runs")
            ours.append((vm.status.since - asked).total_seconds() * 1000)
            hand.append(await asyncio.to_thread(bare.again, "h1") * 1000)
    finally:
        await asyncio.to_thread(bare.stop)
        await done(client, await client.call("vm.delete", "web1", query={"force": True}))
    return {
        "request_to_running_ms": summary(ours),
        "by_hand_ms": summary(hand),
        "difference_ms": median_difference(ours, hand),
        "raw": {"serai_ms": ours, "by_hand_ms": hand},
    }


async def job(client: Client, count: int) -> dict[str, Any]:
    """Pausing and resuming one VM."""
    await done(client, await client.call("vm.create", body=tiny_vm("web2")))
    waits = []
    try:
        for number in range(count):
            ended = await done(client, await client.call("vm.resume" if number % 2 else "vm.pause", "web2"))
            if ended.steps[0].started is None:
                raise RuntimeError("a job that ended well had no first step")
            waits.append((ended.steps[0].started - ended.created).total_seconds() * 1000)
    finally:
        await done(client, await client.call("vm.delete", "web2", query={"force": True}))
    with tempfile.TemporaryDirectory(prefix="serai-bench-") as place:
        bare = bare_transactions(Path(place), count)
    return {"submitted_to_first_step_ms": summary(waits), "bare_transaction_ms": summary(bare), "raw": waits}


def bare_transactions(folder: Path, count: int) -> list[float]:
    """Milliseconds that SQLite itself takes for a durable transaction of one row."""
    times = []
    with contextlib.closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, body TEXT)")
        for number in range(count):
            began = time.perf_counter()
            database.execute("INSERT INTO jobs VALUES (?, ?)", (str(number), "x" * 1000))
            times.append((time.perf_counter() - began) * 1000)
    return times


def stored_network() -> Network:
    """The one that all stored VMs are on."""
    spec = NetworkSpec(bridge="br-lan", subnet=IPv4Network("10.77.0.0/16"))
    status = NetworkStatus()
    return Network(name="lan", id=new_id(NetworkId), generation=1, created=datetime.now(UTC), spec=spec, status=status)


def stored_vm(number: int, network: NetworkId) -> Vm:
    """One VM as it is stored."""
    spec = VmSpec(cpus=2, memory=512 << 20, vnics=[VnicSpec(network=network)])
    status = VmStatus(state=VmState.STOPPED, host=HostName(f"h{number % 10}"), placement="fewest committed resources")
    return Vm(
        name=f"vm{number:04}",
        id=new_id(VmId),
        generation=1,
        created=datetime.now(UTC),
        labels={"tier": "web", "number": str(number)},
        spec=spec,
        status=status,
    )


async def list_(count: int) -> dict[str, Any]:
    """A controller of its own, in this process; the client is another task of it, so its time counts as well."""
    with tempfile.TemporaryDirectory(prefix="serai-bench-") as place:
        folder = Path(place)
        store = await Store.open(folder / "serai.db")
        async with store.transaction() as tx:
            network = stored_network()
            await tx.networks.insert(network)
            for number in range(STORED):
                await tx.vms.insert(stored_vm(number, network.id))
        await store.close()
        config = ControllerConfig(
            state=folder, listen="127.0.0.1:0", socket=folder / "api.sock", token_file=folder / "token"
        )
        times, bare = [], []
        async with running(config, MemBus(), standard_extras(None)) as parts:
            token = config.token_file.read_text(encoding="utf-8").strip()
            headers = {"Authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(base_url=parts.url or "", headers=headers) as http:
                for _ in range(count + 1):
                    began = time.perf_counter()
                    answer = await http.get("/v1/vms", params={"limit": PAGE})
                    times.append((time.perf_counter() - began) * 1000)
                    if len(answer.raise_for_status().json()["items"]) != PAGE:
                        raise RuntimeError("not a whole page")
        with contextlib.closing(sqlite3.connect(folder / "serai.db")) as database:
            for _ in range(count):
                began = time.perf_counter()
                if len(database.execute(f"SELECT * FROM vms ORDER BY name LIMIT {PAGE}").fetchall()) != PAGE:
                    raise RuntimeError("not a whole page")
                bare.append((time.perf_counter() - began) * 1000)
    return {
        "first_page_ms": summary(times[1:]),
        "bare_query_ms": summary(bare),
        "first_request_ms": round(times[0], 3),
        "stored": STORED,
        "page": PAGE,
        "raw": times[1:],
    }


def spent(pid: int) -> float:
    """Processor seconds of a process, all threads, and of those of its children that it has waited for."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def named(netns: str, name: str) -> list[int]:
    """The processes of a program in a namespace."""
    found = []
    for pid in namespace.processes_in(netns):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).name().startswith(name):
                found.append(pid)
    return found


def memory(pid: int) -> dict[str, float]:
    """Resident and proportional memory in MB."""
    taken = psutil.Process(pid).memory_full_info()
    return {"rss_mb": round(taken.rss / 1e6, 1), "pss_mb": round(taken.pss / 1e6, 1)}


async def rest(client: Client, vms: int, seconds: float) -> dict[str, Any]:
    """The agent of h2 with these VMs, and with the pool that their disks are in."""
    names = [f"rest{number}-{secrets.token_hex(2)}" for number in range(vms)]
    pool = f"rest-{secrets.token_hex(2)}"
    await done(client, await client.call("pool.create", body=PoolCreate(name=pool, spec=PoolSpec(host=HostName("h2")))))
    disk = DiskSpec(pool=PoolId(pool), size=32 << 20)
    spec = VmSpec(
        image=ImageId("tiny"),
        cpus=1,
        memory=REST_MEMORY,
        disks=[disk],
        vnics=[VnicSpec(network=NetworkId("lan"))],
        host=HostName("h2"),
    )
    try:
        for name in names:
            await done(client, await client.call("vm.create", body=VmCreate(name=name, spec=spec)))
            # One by one: twenty emulated guests that boot at once keep each other from getting anywhere.
            vm: Vm = await client.call("vm.show", name)
            await Guest(LAB, str(vm.spec.vnics[0].ip)).up(timeout=300)
        return {"vms": vms, **await watched(seconds)}
    finally:
        for name in names:
            with contextlib.suppress(NotFoundError):
                await client.wait_job((await client.call("vm.delete", name, query={"force": True})).id)
        await client.wait_job((await client.call("pool.delete", pool)).id)


async def watched(seconds: float) -> dict[str, Any]:
    """What runs for h2's VMs, over a while in which nobody asks anything."""
    state = LabFolder.of(LAB).load()
    pids = {row.role: row.pid for row in state.processes}
    netns = state.plan.netns("h2")
    groups = {
        "agent": [pids["agent h2"]],
        "controller": [pids["controller ctl"]],
        "qemus": named(netns, "qemu-system"),
        "iscsi_target": named(netns, "tgtd"),
    }
    await asyncio.sleep(10)  # what the starts left to do is over
    before, began = {name: sum(map(spent, group)) for name, group in groups.items()}, time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - began
    used = {name: (sum(map(spent, group)) - before[name]) / took * 100 for name, group in groups.items()}
    return {
        "seconds": round(took, 1),
        **{f"{name}_percent_of_a_core": round(value, 3) for name, value in used.items()},
        "agent_memory": memory(pids["agent h2"]),
        "controller_memory": memory(pids["controller ctl"]),
    }


async def in_lab(what: set[str], quick: bool) -> dict[str, Any]:
    """The parts that need a lab."""
    await down(LAB)
    await up(LAB, 2, link_rate=demo.LINK_RATE)
    found: dict[str, Any] = {}
    try:
        async with Client(contexts.resolve(LAB)[1]) as client:
            await build_image(client, "tiny")
            hosts = [row async for row in client.items("host.list")]
            facts = hosts[0].status.facts
            if facts is None:
                raise RuntimeError("h1 has no facts")
            on = {"machine": machine(qemu=facts.qemu_version, accel=facts.accel)}
            if "start" in what:
                found["start"] = on | await start(client, 3 if quick else 20)
            if "job" in what:
                found["job"] = on | await job(client, 6 if quick else 60)
            if "rest" in what:
                found["rest"] = on | await rest(client, 3 if quick else AT_REST, 5.0 if quick else 60.0)
    finally:
        await down(LAB)
    return found


def main() -> None:
    """Measure what was asked for and write bench/results/control.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="start, job, list, rest; all without a word")
    parser.add_argument("--quick", action="store_true", help="a few repetitions, and no result file")
    options = parser.parse_args()
    what = set(options.what) or set(PARTS)
    if what - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(what - set(PARTS)))}: say {', '.join(PARTS)}")
    found: dict[str, Any] = {}
    if "list" in what:
        found["list"] = {"machine": machine()} | run(list_(5 if options.quick else 100))
    if what - {"list"}:
        found |= run(in_lab(what, options.quick))
    print(json.dumps({name: {k: v for k, v in part.items() if k != "raw"} for name, part in found.items()}, indent=1))
    if not options.quick:
        file = RESULTS / "control.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        today = datetime.now(UTC).date().isoformat()
        kept = {name: part for name, part in known.items() if name in PARTS}
        print(write("control", kept | {name: {"date": today} | part for name, part in found.items()}))


if __name__ == "__main__":
    main()
