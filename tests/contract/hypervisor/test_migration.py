"""What every hypervisor does when a VM moves."""

from __future__ import annotations

import asyncio
import signal
import socket

import pytest
from tests.contract.hypervisor.benches import (
    CAPABILITIES,
    DEADLINE,
    FAST,
    SLOW,
    Bench,
    Events,
    FakeBench,
    destination,
    listening,
    started,
)

from serai.drivers.hypervisor.base import MigrationSetup, RunState
from serai.schema.errors import SeraiError, UnsupportedError


async def test_moves_with_a_pause_before_the_switch(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    assert await target.run_state() is RunState.INMIGRATE
    leaving, arriving = Events(source), Events(target)
    port = await listening(target)
    await source.migrate("127.0.0.1", port, FAST)
    await leaving.status("pre-switchover")
    assert await source.run_state() is not RunState.RUNNING
    assert "completed" not in arriving.statuses
    await source.migrate_continue()
    await arriving.status("completed")
    await leaving.status("completed")
    assert leaving.statuses == ["setup", "active", "pre-switchover", "device", "completed"]
    assert [event.at for event in leaving.all] == sorted(event.at for event in leaving.all)
    assert await source.run_state() is RunState.POSTMIGRATE
    assert await target.run_state() is RunState.PAUSED
    await target.cont()
    await target.announce()
    stats = await source.migration_stats()
    assert stats.status == "completed"
    assert stats.rounds >= 1
    assert stats.ram_transferred > 0
    await source.quit(10)
    await source.close()
    # It lives on over there, with its power button armed.
    await target.powerdown()
    async with asyncio.timeout(DEADLINE):
        assert (await target.ended()).shutdown == "guest-shutdown"
    await target.close()


async def test_source_can_go_on_after_all_was_sent(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), FAST)
    await leaving.status("pre-switchover")
    await source.migrate_continue()
    await leaving.status("completed")
    await target.kill()
    await target.close()
    await source.cont()
    assert await source.run_state() is RunState.RUNNING
    await source.kill()
    await source.close()


async def test_cancelled_while_memory_is_sent(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    if isinstance(bench, FakeBench):
        bench.world.hold_at("pre-switchover")
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), SLOW)
    await leaving.status("active")
    with pytest.raises(SeraiError):
        await source.migrate("127.0.0.1", 49399, SLOW)
    await source.migrate_cancel()
    await leaving.status("cancelled")
    assert await source.run_state() is RunState.RUNNING
    assert (await source.migration_stats()).status == "cancelled"
    await target.kill()
    # And it can be tried again.
    if isinstance(bench, FakeBench):
        bench.world.release("pre-switchover")
    second = await bench.two.start(source.launch, bench.resources(source.launch, "three"), incoming=True, paused=True)
    arriving = Events(second)
    await source.migrate("127.0.0.1", await listening(second), FAST)
    await leaving.status("pre-switchover")
    await source.migrate_continue()
    await arriving.status("completed")
    for machine in (source, target, second):
        await machine.kill()
        await machine.close()


async def test_cancelled_before_the_switch(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), FAST)
    await leaving.status("pre-switchover")
    await source.migrate_cancel()
    await leaving.status("cancelled")
    await leaving.until(lambda: [e.name for e in leaving.all].count("RESUME") == 1)
    assert await source.run_state() is RunState.RUNNING
    for machine in (source, target):
        await machine.kill()
        await machine.close()


@pytest.mark.parametrize("at", ["active", "pre-switchover"])
async def test_destination_killed(bench: Bench, at: str) -> None:
    source = await started(bench)
    await bench.running(source)
    target = await destination(bench, source)
    if isinstance(bench, FakeBench) and at == "active":
        bench.world.hold_at("pre-switchover")
    leaving = Events(source)
    await source.migrate("127.0.0.1", await listening(target), SLOW if at == "active" else FAST)
    await leaving.status(at)
    bench.kill_from_outside(target)
    assert (await target.ended()).signal == signal.SIGKILL
    if isinstance(bench, FakeBench) and at == "active":
        bench.world.release("pre-switchover")
    if at == "pre-switchover":
        await source.migrate_continue()
    await leaving.status("failed")
    assert (await source.migration_stats()).error
    if at == "pre-switchover":
        await leaving.until(lambda: any(event.name == "RESUME" for event in leaving.all))
    assert await source.run_state() is RunState.RUNNING
    for machine in (source, target):
        await machine.kill()
        await machine.close()


async def test_nobody_listens(bench: Bench) -> None:
    source = await started(bench)
    await bench.running(source)
    leaving = Events(source)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        try:
            await source.migrate("127.0.0.1", port, FAST)
            await leaving.status("failed")
        except SeraiError:
            pass
    assert await source.run_state() is RunState.RUNNING
    await source.kill()
    await source.close()


async def test_two_destinations_take_two_ports(bench: Bench) -> None:
    first, second = await started(bench), await started(bench)
    targets = [await destination(bench, machine) for machine in (first, second)]
    ports = [await listening(target) for target in targets]
    assert len(set(ports)) == 2
    assert all(49352 <= port <= 49399 for port in ports)
    for machine in (first, second, *targets):
        await machine.kill()
        await machine.close()


async def test_unknown_capability_is_refused(bench: Bench) -> None:
    machine = await started(bench)
    setup = MigrationSetup({"teleport": True}, downtime_limit_ms=1, bandwidth_bytes=0, tls_hostname=None)
    with pytest.raises(UnsupportedError):
        await machine.migrate("127.0.0.1", 49399, setup)
    assert (await machine.migration_stats()).status == "none"
    with pytest.raises(SeraiError):
        await machine.migrate_continue()
    await machine.kill()
    await machine.close()


async def test_tls_without_certificates_is_refused(bench: Bench) -> None:
    machine = await started(bench)
    setup = MigrationSetup(CAPABILITIES, downtime_limit_ms=1, bandwidth_bytes=0, tls_hostname="h2")
    with pytest.raises(UnsupportedError):
        await machine.migrate("127.0.0.1", 49399, setup)
    await machine.kill()
    await machine.close()
