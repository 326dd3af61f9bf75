"""What is believed of a QEMU that is asked, what is remembered, and what makes the probe look again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serai.drivers.hypervisor import kvm, probe, qmp
from serai.drivers.hypervisor.base import HostResources
from serai.drivers.hypervisor.kvm import KNOWN_END
from serai.drivers.hypervisor.probe import MEMORY_FILE, probe_cached
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.lib.process import ProgramMissingError
from serai.schema.errors import HostError, UnavailableError, UnsupportedError
from serai.schema.host import Ability
from serai.schema.ids import VmId
from serai.schema.launch import Launch

from .conftest import Stand

REFUSES = """case "$*" in *-sandbox*) echo "-sandbox support is not enabled in this QEMU binary" >&2; exit 1;; esac"""
SILENT = """case "$*" in *-sandbox*) exec sleep 1000;; esac"""
GUEST = """case "$*" in *isa-debug-exit*) eval "%s";; esac"""
REAL = 'exec "$REAL" "$@"'
StandIn = Callable[[str], Stand]


@pytest.fixture(autouse=True)
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device node is there, on machines without one too."""
    node = tmp_path / "dev-kvm"
    node.touch()
    monkeypatch.setattr(kvm, "KVM", node)


def qemu(guest: str, *before: str) -> str:
    """A script: the real QEMU when it is asked, and `guest` when the test guest is to be run."""
    return "\n".join([*before, GUEST % guest, REAL])


WORKS = qemu(f"exit {KNOWN_END}")


def launch(machine: str = "pc-q35-99.0") -> Launch:
    return Launch(
        vm=VmId("0123456789ab"), name="t", generation=1, machine=machine, accel="tcg", cpus=1, max_cpus=1,
        memory=1 << 25, uuid="6f9619ff-8b86-d011-b42d-00c04fc964ff",
    )  # fmt: skip


def named(abilities: list[Ability], name: str) -> Ability:
    return next(ability for ability in abilities if ability.name == name)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Not pytest's folder: the path of a socket has 108 characters at most."""
    with tempfile.TemporaryDirectory(prefix="serai-") as name:
        yield Path(name) / "run"


async def start(hypervisor: QemuHypervisor, folder: Path, *, incoming: bool = False) -> None:
    await hypervisor.start(
        launch(), HostResources(folder / "run", user=None, cgroup=None), incoming=incoming, paused=True
    )


# --- what is remembered -----------------------------------------------------------------------------------------------


async def test_remembered_until_something_changes(stand_in: StandIn, tmp_path: Path) -> None:
    state, stand = tmp_path / "state", stand_in(WORKS)
    first = await probe_cached(state, None)
    assert (first.kvm.found, first.answers.refused, first.fresh) == (True, "", True)
    calls = len(stand.calls())
    again = await probe_cached(state, None)
    assert (again.answers, again.kvm, again.fresh) == (first.answers, first.kvm, False)
    assert again.facts().accel == "kvm"
    assert len(stand.calls()) == calls
    (state / MEMORY_FILE).write_text("{half a docu")
    assert (await probe_cached(state, None)).fresh
    os.utime(stand.script, (1, 1))  # another binary
    assert (await probe_cached(state, None)).fresh
    assert len(stand.calls()) == 3 * calls


@pytest.mark.parametrize("guest", ["exec sleep 1000", "echo busy >&2; exit 1"])
async def test_guests_that_did_not_run_are_tried_again_by_the_next_agent(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: str
) -> None:
    state, stand = tmp_path / "state", stand_in(qemu("$GUEST"))
    first = QemuHypervisor(state, user=None)
    with monkeypatch.context() as patch:
        patch.setattr(kvm, "PATIENCE", 0.2)
        patch.setenv("GUEST", guest)
        assert (await first.facts()).accel == "tcg"
    calls = stand.calls()
    assert (await first.retry_kvm()).accel == "tcg"
    monkeypatch.setenv("GUEST", f"exit {KNOWN_END}")
    second = QemuHypervisor(state, user=None)
    assert (await second.facts()).accel == "tcg", "it starts with what is remembered"
    assert stand.calls() == calls
    assert (await second.retry_kvm()).accel == "kvm"
    third = QemuHypervisor(state, user=None)
    assert (await third.facts()).accel == "kvm"
    assert (await third.retry_kvm()).accel == "kvm"
    assert len(stand.calls()) == len(calls) + 1


# --- the sandbox ------------------------------------------------------------------------------------------------------


async def test_a_qemu_that_says_that_it_has_no_sandbox_is_believed(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in(qemu(f"exit {KNOWN_END}", REFUSES))
    hypervisor = QemuHypervisor(tmp_path / "state", user=None)
    lack = named((await hypervisor.facts()).abilities, "qemu-sandbox")
    assert (lack.found, lack.required) == (False, True)
    assert "not enabled in this QEMU binary): no VM is started" in lack.detail
    assert "allow_unsandboxed" in lack.remedy
    with pytest.raises(UnsupportedError, match="no VM is started without") as caught:
        await start(hypervisor, tmp_path)
    assert caught.value.info.field == "allow_unsandboxed"
    assert caught.value.info.remedy


async def test_only_the_configuration_lets_vms_run_without(stand_in: StandIn, tmp_path: Path, run_dir: Path) -> None:
    stand_in(qemu(f"exit {KNOWN_END}", REFUSES))
    hypervisor = QemuHypervisor(tmp_path / "state", user=None, allow_unsandboxed=True)
    facts = await hypervisor.facts()
    lack = named(facts.abilities, "qemu-sandbox")
    assert (lack.found, lack.required) == (False, False)
    assert "allow_unsandboxed" in lack.detail
    resources = HostResources(run_dir, user=None, cgroup=None)
    machine = await hypervisor.start(launch(facts.machine_types[0]), resources, incoming=False, paused=True)
    assert b"-sandbox" not in Path(f"/proc/{machine.pid}/cmdline").read_bytes()
    await machine.kill()
    await machine.ended()
    await machine.close()


async def test_one_that_does_not_answer_in_time_has_said_nothing(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = stand_in(qemu(f"exit {KNOWN_END}", SILENT))
    state = tmp_path / "state"
    hypervisor = QemuHypervisor(state, user=None, allow_unsandboxed=True)
    with monkeypatch.context() as patch:
        patch.setattr(qmp, "CONNECT_TIMEOUT", 0.2)
        patch.setattr(probe, "LAST_WORDS", 0.2)
        patch.setattr(probe, "USER", None)
        for _ in range(2):
            with pytest.raises(UnavailableError) as caught:
                await hypervisor.facts()
            assert caught.value.info.remedy
            with pytest.raises(UnavailableError):
                await start(hypervisor, tmp_path)
        lack = (await probe.probe())[0]
        assert (lack.name, lack.found, lack.required) == ("qemu", False, True)
        assert "did not answer in time" in lack.detail
    assert not (state / MEMORY_FILE).exists()
    assert all("-sandbox" in call for call in stand.calls())
    stand_in(WORKS)
    assert named((await hypervisor.facts()).abilities, "qemu-sandbox").found


async def test_one_that_ends_for_another_reason_is_not_without_a_sandbox(stand_in: StandIn, tmp_path: Path) -> None:
    stand = stand_in("echo 'error while loading shared libraries' >&2; exit 127")
    with pytest.raises(HostError, match="loading shared libraries"):
        await probe_cached(tmp_path, None)
    assert len(stand.calls()) == 1
    assert not (tmp_path / MEMORY_FILE).exists()


async def test_one_that_the_kernel_ends_in_its_sandbox_has_none(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in(qemu(f"exit {KNOWN_END}", 'case "$*" in *-sandbox*) kill -SYS $$;; esac'))
    assert (await probe_cached(tmp_path, None)).answers.refused


async def test_without_a_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissingError, match="not installed") as caught:
        await probe_cached(tmp_path, None)
    assert "apt install" in (caught.value.info.remedy or "")


# --- moves ------------------------------------------------------------------------------------------------------------


async def test_nothing_comes_to_a_qemu_whose_streams_do_not_end_with_their_end_mark(
    stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in(WORKS)
    state = tmp_path / "state"
    await probe_cached(state, None)
    text = (state / MEMORY_FILE).read_text()
    (state / MEMORY_FILE).write_text(text.replace("suppress-vmdesc", "older"))
    hypervisor = QemuHypervisor(state, user=None)
    facts = await hypervisor.facts()
    assert not facts.suppress_vmdesc
    assert not named(facts.abilities, "live-migration").found
    with pytest.raises(UnsupportedError, match="suppress-vmdesc"):
        await start(hypervisor, tmp_path, incoming=True)
    with pytest.raises(HostError, match=r"pc-q35-99\.0"):
        await start(hypervisor, tmp_path)
