"""`python -m bench.control [start|job|list|rest …] [--quick]`: what the control plane adds, and what it costs at rest.

- start: from the API request `vm.start` of a stopped VM until its vCPUs run (the host's own word, by the lab's one
  clock), beside the same command line started by hand (from before its spawn until QEMU answered `cont`), in turn.
- job: from a job's creation to the start of its first step, by the job's own times.
- list: `GET /v1/vms?limit=100` over loopback, connection kept, from a controller that has 1,000 VMs stored.
- rest: processor time and memory of a host agent that has 20 running VMs, beside their QEMUs, over a minute.

Results go to bench/results/control.json; parts that were not asked for keep their last figures there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from bench import demo
from bench.demo import bare_pair, build_image, done, tiny_vm
from bench.stats import RESULTS, machine, median_difference, summary, write
from serai.app.controller import ControllerConfig, running, standard_extras
from serai.client import context as contexts
from serai.client.http import Client
from serai.controller.store import Store
from serai.lab.down import down
from serai.lab.state import LabFolder
from serai.lab.up import up
from serai.lab.workload import Guest
from serai.lib.ids import new_id
from serai.lib.membus import MemBus
from serai.schema.errors import NotFoundError
from serai.schema.vm import Vm, VmCreate, VmSpec, VmState, VmStatus, VmStop, VnicSpec

LAB = "control"
PARTS = ("start", "job", "list", "rest")
STORED = 1000
PAGE = 100
AT_REST = 20
REST_MEMORY = 128 << 20


async def start(client: Client, pairs: int) -> dict[str, Any]:
    """Starts through the API and by hand, in turn."""
    await done(client, await client.call("vm.create", body=tiny_vm("web1")))
    bare = bare_pair(await client.call("vm.show", "web1"))
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
    return {"submitted_to_first_step_ms": summary(waits), "raw": waits}


def stored_vm(number: int) -> Vm:
    """One VM as it is stored."""
    spec = VmSpec(cpus=2, memory=512 << 20, vnics=[VnicSpec(network="lan")])
    status = VmStatus(state=VmState.STOPPED, host=f"h{number % 10}", placement="fewest committed resources")
    return Vm(
        name=f"vm{number:04}",
        id=new_id(),
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
            for number in range(STORED):
                await tx.vms.insert(stored_vm(number))
        await store.close()
        config = ControllerConfig(
            state=folder, listen="127.0.0.1:0", socket=folder / "api.sock", token_file=folder / "token"
        )
        times = []
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
    return {"first_page_ms": summary(times[1:]), "first_request_ms": round(times[0], 3), "stored": STORED, "page": PAGE}


def spent(pid: int) -> float:
    """Processor seconds of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, float]:
    """Resident and proportional memory in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    sizes = {words[0]: int(words[1]) for words in (line.split() for line in lines[1:])}
    return {"rss_mb": round(sizes["Rss:"] * 1024 / 1e6, 1), "pss_mb": round(sizes["Pss:"] * 1024 / 1e6, 1)}


async def rest(client: Client, vms: int, seconds: float) -> dict[str, Any]:
    """The agent of h2, which has nothing but these VMs: no pool, no image but its own copy."""
    names = [f"rest{number}-{secrets.token_hex(2)}" for number in range(vms)]
    spec = VmSpec(image="tiny", cpus=1, memory=REST_MEMORY, vnics=[VnicSpec(network="lan")], host="h2")
    try:
        for name in names:
            await done(client, await client.call("vm.create", body=VmCreate(name=name, spec=spec)))
            # One by one: twenty emulated guests that boot at once keep each other from getting anywhere.
            vm: Vm = await client.call("vm.show", name)
            await Guest(LAB, str(vm.spec.vnics[0].ip)).up(timeout=300)
        pids = {row.role: row.pid for row in LabFolder.of(LAB).load().processes}
        agent, controller = pids["agent h2"], pids["controller ctl"]
        await asyncio.sleep(10)  # what the starts left to do is over
        before, began = (spent(agent), spent(controller)), time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began
        used = [
            round((after - then) / took * 100, 3)
            for after, then in zip((spent(agent), spent(controller)), before, strict=True)
        ]
        return {
            "vms": vms,
            "seconds": round(took, 1),
            "agent_percent_of_a_core": used[0],
            "agent_memory": memory(agent),
            "controller_percent_of_a_core": used[1],
            "controller_memory": memory(controller),
        }
    finally:
        for name in names:
            with contextlib.suppress(NotFoundError):
                await client.wait_job((await client.call("vm.delete", name, query={"force": True})).id)


async def in_lab(what: set[str], quick: bool) -> dict[str, Any]:
    """The parts that need a lab."""
    demo.LAB = LAB
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
            found["machine"] = machine(qemu=facts.qemu_version, accel=facts.accel)
            if "start" in what:
                found["start"] = await start(client, 3 if quick else 20)
            if "job" in what:
                found["job"] = await job(client, 6 if quick else 60)
            if "rest" in what:
                found["rest"] = await rest(client, 3 if quick else AT_REST, 5.0 if quick else 60.0)
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
        found["list"] = asyncio.run(list_(5 if options.quick else 100))
    if what - {"list"}:
        found |= asyncio.run(in_lab(what, options.quick))
    print(json.dumps({name: {k: v for k, v in part.items() if k != "raw"} for name, part in found.items()}, indent=1))
    if not options.quick:
        file = RESULTS / "control.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known.pop("date", None)
        print(write("control", {**known, **found}))


if __name__ == "__main__":
    main()
