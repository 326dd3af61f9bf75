"""`python -m bench.journal [--commands N] [--rounds N] [--seconds S] [--folder DIR]`: a host's journal under load.

N commands at a time put what a command puts (a VM's record, a generation, an answer) and wait until their reply may be
sent; meanwhile another thread, as a QEMU would, has the event loop commit a lease claim at random moments. Measured are
the milliseconds from that moment until the claim is on the disk, which another VM's blackout waits for, and those of
the commands. Old way: every line is synced before its call returns. New way: claims alone are; the rest is synced in
batches. Both in turn, so that what else the machine does falls on both alike.

The part `slow` is the same with a disk that takes 4 ms longer for each sync, one at a time: what a drive without a
protected cache takes. That is emulated; the part `disk` is not.

Results go to bench/results/journal.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.stats import machine, median_difference, run, summary, write
from serai.host.journal import Journal
from serai.host.store import HostStore, VmRecord
from serai.lib.ids import new_id
from serai.schema.commands.envelope import Reply
from serai.schema.ids import VmId
from serai.schema.launch import Launch
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import RestartPolicy, VmState

SLOW = 0.004
WORK = 0.01
"""Seconds that a command takes besides, on average: it asks a QEMU."""
CLAIM_EVERY = 0.02
"""Seconds between two claims, on average."""


class SyncEach(Journal):
    """The old way."""

    def append(self, kind: str, key: str, data: dict[str, Any] | None) -> None:
        self.commit(kind, key, data)


def record(vm: str) -> VmRecord:
    """What is journaled of a small VM."""
    launch = Launch(
        vm=VmId(vm), name=f"vm-{vm}", generation=1, machine="pc-q35-10.0", accel="kvm", cpus=2, max_cpus=8,
        memory=1 << 30, uuid="00000000-0000-0000-0000-000000000001",
    )  # fmt: skip
    return VmRecord(
        launch=launch, epoch=1, restart=RestartPolicy.ALWAYS, autostart=True, autostart_order=0, state=VmState.RUNNING
    )


async def command(store: HostStore, number: int, until: float, times: list[float]) -> None:
    """Commands for one VM, one after another."""
    vm, generation = record(f"{number:012x}"), 0
    reply = Reply(state="done", result=vm.launch.model_dump(mode="json"))
    while time.perf_counter() < until:
        await asyncio.sleep(random.uniform(0, 2 * WORK))
        began = time.perf_counter()
        generation += 1
        store.put_vm(vm)
        store.put_generation(f"vm/{number}", generation)
        store.put_answer(new_id(), reply)
        await store.durable()
        times.append((time.perf_counter() - began) * 1000)


def claim(store: HostStore, asked: float, times: list[float]) -> None:
    """The commit of a move."""
    store.put_claim(LeaseRecord(vm=VmId("f" * 12), epoch=1, claim=Claim.HELD))
    times.append((time.perf_counter() - asked) * 1000)


async def load(journal: Journal, commands: int, seconds: float) -> tuple[list[float], list[float]]:
    """The times of claims, and of commands."""
    store, loop = HostStore(journal), asyncio.get_running_loop()
    claims: list[float] = []
    times: list[float] = []
    until = time.perf_counter() + seconds

    def qemu() -> None:
        while time.perf_counter() < until:
            time.sleep(random.uniform(0, 2 * CLAIM_EVERY))
            loop.call_soon_threadsafe(claim, store, time.perf_counter(), claims)

    syncing = asyncio.create_task(journal.run())
    try:
        await asyncio.gather(
            asyncio.to_thread(qemu), *(command(store, number, until, times) for number in range(commands))
        )
    finally:
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
    return claims, times


@contextmanager
def slow_disk(extra: float) -> Iterator[None]:
    """Each sync takes that much longer, one at a time."""
    disk, fdatasync = threading.Lock(), os.fdatasync

    def slowly(fd: int) -> None:
        with disk:
            time.sleep(extra)
            fdatasync(fd)

    os.fdatasync = slowly  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fdatasync = fdatasync


async def part(folder: Path, commands: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Both ways in turn."""
    claims: dict[type[Journal], list[list[float]]] = {SyncEach: [], Journal: []}
    times: dict[type[Journal], list[float]] = {SyncEach: [], Journal: []}
    for number in range(rounds):
        for kind in claims if number % 2 else reversed(claims):
            with tempfile.TemporaryDirectory(prefix="serai-bench-", dir=folder) as place:
                journal = kind.open(Path(place) / "journal")
                try:
                    found, took = await load(journal, commands, seconds)
                finally:
                    journal.close()
            claims[kind].append(found)
            times[kind] += took
    medians = {kind: [statistics.median(one) for one in found] for kind, found in claims.items()}
    return {
        "claim_ms": {
            "old": figures([*itertools.chain(*claims[SyncEach])]),
            "new": figures([*itertools.chain(*claims[Journal])]),
        },
        "claim_difference_ms": median_difference(medians[Journal], medians[SyncEach]),
        "command_ms": {"old": figures(times[SyncEach]), "new": figures(times[Journal])},
        "commands_per_s": {
            "old": round(len(times[SyncEach]) / rounds / seconds, 1),
            "new": round(len(times[Journal]) / rounds / seconds, 1),
        },
        "raw": {"claim_medians_ms": {"old": medians[SyncEach], "new": medians[Journal]}},
    }


def figures(values: list[float]) -> dict[str, float]:
    """Median and spread, and what one in a hundred exceeds."""
    return {**summary(values), "p99": round(sorted(values)[int(len(values) * 0.99)], 4)}


async def measure(folder: Path, commands: int, rounds: int, seconds: float) -> dict[str, Any]:
    """All parts."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "commands_at_once": commands,
        "rounds": rounds,
        "seconds": seconds,
        "disk": await part(folder, commands, rounds, seconds),
    }
    with slow_disk(SLOW):
        found["slow"] = {"extra_ms": SLOW * 1000, **await part(folder, commands, rounds, seconds)}
    return found


def main(argv: list[str]) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="bench.journal", description="A host's journal under load.")
    parser.add_argument("--commands", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args(argv)
    content = run(measure(options.folder, options.commands, options.rounds, options.seconds))
    for name in ("disk", "slow"):
        for what in ("claim_ms", "command_ms"):
            for way, row in content[name][what].items():
                print(
                    f"{name:5} {what:11} {way}: median {row['median']:8.3f}  q3 {row['q3']:8.3f}  p99 {row['p99']:8.3f}"
                )
    print(f"written to {write('journal', content)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
