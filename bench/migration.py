"""`python -m bench.migration [PAIRS]`: Serai's live migration and the bare script's, in turn, in one lab.

Outage: the longest gap between replies to a probe every 2 ms, ICMP and UDP, from a node of its own. Total: from the
API's answer until the VM runs on the destination (by the lab's one clock), against the bare script's own time from
nothing prepared to `cont`. `job_s` is the whole job, with what is cleared away after the VM runs.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Any

from bench import demo
from bench.demo import LAB, bare_pair, build_image, done, migrate, tiny_vm
from bench.raw_qmp import Bare
from bench.stats import machine, median_difference, run, summary, write
from bench.workload import Guest
from serai.client import context as contexts
from serai.client.http import Client
from serai.lab.down import down
from serai.lab.probe import Prober
from serai.lab.up import up
from serai.schema.vm import Vm

QUIET = 0.5


async def outage(address: str, action: Any) -> tuple[float, Any]:
    """Worst gap in ms that a prober saw while `action` ran, and what the action returned."""
    prober = await Prober.start(LAB, address)
    async with prober:
        await prober.answered()
        await asyncio.sleep(QUIET)
        result = await action()
        await asyncio.sleep(QUIET)
        report = await prober.stop()
    return report.worst_ms, result


async def measure(client: Client, bare: Bare, address: str, pairs: int) -> dict[str, list[float]]:
    """Alternate: one move by Serai, one by the script, there and back."""
    figures: dict[str, list[float]] = {
        "serai_ms": [],
        "bare_ms": [],
        "serai_s": [],
        "bare_s": [],
        "job_s": [],
    }
    for number in range(pairs):
        to = "h2" if number % 2 == 0 else "h1"
        ms, (job, whole) = await outage(address, lambda to=to: migrate(client, "web1", to))
        figures["serai_ms"].append(ms)
        figures["serai_s"].append(whole)
        figures["job_s"].append((job.ended - job.created).total_seconds())
        ms, result = await outage(demo.BARE_ADDRESS, lambda to=to: asyncio.to_thread(bare.migrate, to))
        figures["bare_ms"].append(ms)
        figures["bare_s"].append(result["total_s"])
        print(
            f"{number + 1:3}: outage {figures['serai_ms'][-1]:6.1f} / {figures['bare_ms'][-1]:6.1f} ms, "
            f"whole {figures['serai_s'][-1]:5.2f} / {figures['bare_s'][-1]:5.2f} s",
            flush=True,
        )
    return figures


async def bench(pairs: int) -> dict[str, Any]:
    """One lab, both VMs alive in it all along."""
    await down(LAB)
    await up(LAB, 3, link_rate=demo.LINK_RATE)
    try:
        async with Client(contexts.resolve(LAB)[1]) as client:
            await build_image(client, "tiny")
            await done(client, await client.call("vm.create", body=tiny_vm("web1")))
            vm: Vm = await client.call("vm.show", "web1")
            address = str(vm.spec.vnics[0].ip)
            await Guest(LAB, address).up()
            bare = bare_pair(vm, LAB)
            try:
                await asyncio.to_thread(bare.start, "h1")
                await Guest(LAB, demo.BARE_ADDRESS).up()
                figures = await measure(client, bare, address, pairs)
            finally:
                await asyncio.to_thread(bare.stop)
            hosts = [row async for row in client.items("host.list")]
            facts = hosts[0].status.facts
    finally:
        await down(LAB)
    return {
        "job_s": summary(figures["job_s"]),
        "machine": machine(qemu=facts.qemu_version, accel=facts.accel, link="1 Gbit/s, HTB", tls=True),
        "guest": "tiny, 128 MB, writes 4 MB/s in 2 MB",
        "outage_ms": {
            "serai": summary(figures["serai_ms"]),
            "bare": summary(figures["bare_ms"]),
            "difference": median_difference(figures["serai_ms"], figures["bare_ms"]),
        },
        "whole_s": {
            "serai": summary(figures["serai_s"]),
            "bare": summary(figures["bare_s"]),
            "difference": median_difference(figures["serai_s"], figures["bare_s"]),
        },
        "raw": figures,
    }


def main() -> None:
    """Measure and write bench/results/migration.json."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    result = run(bench(pairs))
    path = write("migration", {"date": datetime.now(UTC).date().isoformat()} | result)
    for name in ("outage_ms", "whole_s"):
        print(
            name,
            "serai",
            result[name]["serai"]["median"],
            "bare",
            result[name]["bare"]["median"],
            result[name]["difference"],
        )
    print(path)


if __name__ == "__main__":
    main()
