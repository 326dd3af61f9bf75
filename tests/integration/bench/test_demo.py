"""The demo's main function: a whole run, and runs in which a promise is broken. In a lab and a folder of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import demo
from serai.client import context as contexts
from serai.lab import state
from serai.lab.down import down
from serai.lib import namespace
from serai.lib.ids import new_id


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name for the demo's lab, which must be gone at the end; a user's context must be as it was."""
    name = f"t{new_id()[:6]}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(state.ENV_PARENT, str(tmp_path / "labs"))
    monkeypatch.setenv(contexts.ENV_FILE, str(tmp_path / "contexts.yaml"))
    contexts.put("mine", contexts.Context(url="https://elsewhere.example"))
    before = contexts.config_file().read_bytes()
    demo.REPORT.parent.mkdir()
    demo.REPORT.write_text("an older run's")
    yield name
    left = namespace.names(f"serai-{name}-"), [found.name for found in state.standing() if found.name == name]
    asyncio.run(down(name))
    assert left == ([], [])
    assert contexts.config_file().read_bytes() == before


def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(demo.REPORT.read_text())
    return found


def broken(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in found["checks"] if not check["ok"]}


def test_a_whole_run_writes_what_it_found(
    lab: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # How long the outage is on a busy machine is not what is tested here.
    monkeypatch.setattr(demo, "LONGEST_OUTAGE", 60_000.0)
    code = demo.main(["--lab", lab])
    found = report()
    assert (code, broken(found)) == (0, {}), capfd.readouterr().err
    assert set(found) == {"checks", "migration", "bare", "machine"}
    assert len(found["checks"]) >= 12
    assert all({key: type(value) for key, value in one.items()} == CHECK for one in found["checks"])
    for part, wanted in (("migration", MIGRATION), ("bare", BARE), ("machine", MACHINE)):
        for key, kind in wanted.items():
            assert isinstance(found[part][key], kind), f"{part}.{key}: {found[part].get(key)!r}"
    assert found["migration"]["phases"]
    assert all(isinstance(seconds, float) for seconds in found["migration"]["phases"].values())
    assert "bare script" in capfd.readouterr().out


CHECK = {"name": str, "ok": bool, "detail": str}
MIGRATION = {
    "outage_ms": float,
    "until_it_runs_s": float,
    "total_s": float,
    "downtime_ms": int | float,
    "rounds": int,
    "bytes_sent": int,
    "phases": dict,
    "mode": str,
}
BARE = {"outage_ms": float, "total_s": float, "downtime_ms": int}
MACHINE = {"cpus": int, "cpu": str, "kernel": str, "qemu": str, "accel": str, "link_rate_bit_s": int}


def test_a_broken_promise_is_in_the_report_and_in_the_exit_code(
    lab: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "GUEST_MEMORY", 1 << 50)
    assert demo.main(["--lab", lab]) == 1
    found = report()
    told = broken(found)
    assert list(told) == ["the VM answers at its address", demo.TO_ITS_END]
    assert "memory" in told["the VM answers at its address"]
    assert told["the VM answers at its address"] in capfd.readouterr().err
    assert (found["migration"], found["bare"]) == ({}, {})
    # The lab was taken down all the same.
    assert found["checks"][-1] == {"name": "the lab is gone without a trace", "ok": True, "detail": ""}


def test_a_lab_that_cannot_be_is_a_broken_promise(lab: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--lab", "No/Good"]) == 1
    assert "name: No/Good" in broken(report())["the lab is up"]
    assert "the lab is up" in capfd.readouterr().err


def test_a_signal_takes_the_lab_down_and_is_in_the_report(lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def show(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(demo, "show", show)
    assert demo.main(["--lab", lab]) == 1
    found = report()
    assert broken(found) == {demo.TO_ITS_END: "ended by a signal"}
    assert {"name": "the lab is gone without a trace", "ok": True, "detail": ""} in found["checks"]


def test_what_nobody_foresaw_is_in_the_report_too(lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "own_contexts", None)
    with pytest.raises(TypeError):
        demo.main(["--lab", lab])
    assert broken(report()) == {demo.TO_ITS_END: "TypeError: 'NoneType' object is not callable"}
