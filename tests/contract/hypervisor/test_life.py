"""What every hypervisor does with a VM from its start to its end, and how a VM is adopted."""

from __future__ import annotations

import asyncio
import signal

import pytest
from tests.contract.hypervisor.benches import DEADLINE, Bench, Events, started

from serai.drivers.hypervisor import qmp, record
from serai.drivers.hypervisor.base import HostResources, Machine, RunState
from serai.lib.ids import new_id
from serai.schema.errors import ConflictError, InvalidError, SeraiError, UnavailableError


async def test_facts_name_what_a_move_needs(bench: Bench) -> None:
    facts = await bench.one.facts()
    assert {"events", "pause-before-switchover"} <= set(facts.migration_capabilities)
    assert any(name.startswith("pc-q35-") for name in facts.machine_types)
    assert facts.accel in ("kvm", "tcg")


async def test_starts_paused_runs_pauses_and_ends(bench: Bench) -> None:
    machine = await started(bench)
    events = Events(machine)
    assert await machine.run_state() is RunState.PRELAUNCH
    await machine.cont()
    assert await machine.run_state() is RunState.RUNNING
    await machine.stop()
    assert await machine.run_state() is RunState.PAUSED
    await machine.cont()
    await machine.reset()
    await events.event("RESET")
    assert await machine.run_state() is RunState.RUNNING
    await machine.quit(10)
    info = await machine.ended()
    assert (info.code, info.signal, info.shutdown) == (0, None, "host-qmp-quit")
    assert [event.name for event in events.all][:3] == ["RESUME", "STOP", "RESUME"]
    assert await machine.ended() == info
    await machine.close()


async def test_starts_running(bench: Bench) -> None:
    launch = await bench.launch()
    machine = await bench.one.start(launch, bench.resources(launch), incoming=False, paused=False)
    assert await machine.run_state() is RunState.RUNNING
    await machine.kill()
    await machine.close()


async def test_an_io_error_stops_the_machine_and_it_goes_on_once_it_is_mended(bench: Bench) -> None:
    machine = await started(bench, "writer")
    events = Events(machine)
    bench.fill_storage(machine)
    await bench.running(machine)
    await events.event("STOP")
    (error,) = [event.data for event in events.all if event.name == "BLOCK_IO_ERROR"]
    assert (error["node-name"], error["action"], error["operation"]) == ("disk0", "stop", "write")
    assert error["reason"]
    assert await machine.run_state() is RunState.IO_ERROR
    bench.mend_storage(machine)
    await machine.cont()
    await bench.written(machine)
    assert await machine.run_state() is RunState.RUNNING
    await machine.kill()
    await machine.close()


async def test_power_button(bench: Bench) -> None:
    machine = await started(bench)
    await bench.running(machine)
    events = Events(machine)
    await machine.powerdown()
    async with asyncio.timeout(DEADLINE):
        info = await machine.ended()
    assert info.shutdown == "guest-shutdown"
    assert info.code == 0
    assert {"POWERDOWN", "SHUTDOWN"} <= {event.name for event in events.all}
    await machine.close()


@pytest.mark.parametrize(("guest", "reason"), [("off", "guest-shutdown"), ("panic", "guest-panic")])
async def test_guest_ends_itself(bench: Bench, guest: str, reason: str) -> None:
    machine = await started(bench, guest)
    await bench.running(machine)
    bench.guest_ends(machine, reason)
    async with asyncio.timeout(DEADLINE):
        info = await machine.ended()
    assert info.shutdown == reason
    await machine.close()


async def test_killed(bench: Bench) -> None:
    machine = await started(bench)
    await machine.cont()
    waiting = asyncio.create_task(machine.ended())
    bench.kill_from_outside(machine)
    info = await waiting
    assert (info.code, info.signal, info.shutdown) == (None, signal.SIGKILL, None)
    with pytest.raises(UnavailableError):
        await machine.run_state()
    await machine.close()


async def test_silence_is_not_death(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await started(bench)
    monkeypatch.setattr(qmp, "COMMAND_TIMEOUT", 0.05)
    bench.silence(machine)
    with pytest.raises(UnavailableError):
        await machine.run_state()
    monkeypatch.undo()
    bench.wake(machine)
    assert await machine.run_state() is RunState.PRELAUNCH
    bench.silence(machine)
    await machine.quit(0.05)
    assert (await machine.ended()).signal == signal.SIGKILL
    await machine.close()


async def test_second_start_of_the_same_vm_is_refused(bench: Bench) -> None:
    machine = await started(bench)
    with pytest.raises(ConflictError):
        await bench.one.start(machine.launch, bench.resources(machine.launch), incoming=False, paused=True)
    assert await machine.run_state() is RunState.PRELAUNCH
    await machine.kill()
    await machine.close()
    # Over is over: the folder is free again.
    again = await bench.one.start(machine.launch, bench.resources(machine.launch), incoming=False, paused=True)
    await again.kill()
    await again.close()


async def test_start_without_its_disk_is_refused(bench: Bench) -> None:
    launch = await bench.launch()
    resources = HostResources(run_dir=bench.resources(launch).run_dir, cgroup=None)
    with pytest.raises(InvalidError):
        await bench.one.start(launch, resources, incoming=False, paused=True)
    assert await bench.one.adopt(launch.vm, resources.run_dir) is None


# --- adoption ---------------------------------------------------------------------------------------------------------


async def test_adopted_after_close(bench: Bench) -> None:
    machine = await started(bench)
    await machine.cont()
    await machine.close()
    run_dir = bench.resources(machine.launch).run_dir
    assert await bench.one.adopt(new_id(), run_dir) is None
    again = await bench.one.adopt(machine.vm, run_dir)
    assert again is not None
    assert (again.pid, again.launch) == (machine.pid, machine.launch)
    assert await again.run_state() is RunState.RUNNING
    await again.quit(10)
    info = await again.ended()
    assert info.shutdown == "host-qmp-quit"
    await again.close()
    assert await machine.ended() is not None
    assert await bench.one.adopt(machine.vm, run_dir) is None


async def test_guest_that_ended_while_nobody_watched(bench: Bench) -> None:
    machine = await started(bench, "off")
    events = Events(machine)
    await machine.close()
    events.forget()
    # Run by someone who does not watch it to its end.
    other = await bench.one.adopt(machine.vm, bench.resources(machine.launch).run_dir)
    assert other is not None
    await other.cont()
    await other.close()
    bench.guest_ends(machine, "guest-shutdown")
    async with asyncio.timeout(DEADLINE):
        while True:
            again = await bench.one.adopt(machine.vm, bench.resources(machine.launch).run_dir)
            assert again is not None
            if await _is_over(again):
                break
            await again.close()
            await asyncio.sleep(0.05)
        info = await again.ended()
    assert info.shutdown == "guest-shutdown"
    await again.close()


async def _is_over(machine: Machine) -> bool:
    try:
        return await machine.run_state() is RunState.SHUTDOWN
    except SeraiError:
        return True


async def test_its_process_is_found_without_a_record_and_while_it_is_silent(bench: Bench) -> None:
    machine = await started(bench)
    (bench.resources(machine.launch).run_dir / record.FILE).unlink(missing_ok=True)
    bench.silence(machine)
    (found,) = [one for one in await bench.one.processes() if one.vm == machine.vm]
    assert found.pid == machine.pid
    await found.kill()
    await machine.ended()
    assert machine.vm not in [one.vm for one in await bench.one.processes()]
    await machine.close()
