"""The probe of KVM, with small programs in QEMU's place, and with QEMU itself and a guest that ends otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from serai.drivers.hypervisor import kvm
from serai.drivers.hypervisor.kvm import KNOWN_END, firmware, probe_kvm, run_guest

from .conftest import Stand

DEADLINE = 120.0


@pytest.fixture(autouse=True)
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device node is there, on machines without one too."""
    node = tmp_path / "dev-kvm"
    node.touch()
    monkeypatch.setattr(kvm, "KVM", node)
    # By default nothing is given up for its time: this machine may be busy.
    monkeypatch.setattr(kvm, "PATIENCE", DEADLINE)
    monkeypatch.setattr(kvm, "CPU_LIMIT", DEADLINE)


async def test_only_the_known_end_says_that_guests_run(stand_in: Callable[[str], Stand]) -> None:
    stand_in(f"exit {KNOWN_END}")
    found = await probe_kvm(None)
    assert found.found
    assert "ran to its end" in found.detail


@pytest.mark.parametrize("code", [0, 1, KNOWN_END - 1, KNOWN_END + 2])
async def test_any_other_end_does_not(stand_in: Callable[[str], Stand], code: int) -> None:
    stand_in(f"echo 'first words' >&2; echo 'ioctl(KVM_CREATE_VM) failed' >&2; exit {code}")
    found = await probe_kvm(None)
    assert not found.found
    assert found.detail == "QEMU cannot use /dev/kvm (ioctl(KVM_CREATE_VM) failed)"
    assert found.remedy.startswith("Guests run emulated (TCG)")


async def test_a_killed_one_does_not(stand_in: Callable[[str], Stand]) -> None:
    stand_in("kill -ABRT $$")
    found = await probe_kvm(None)
    assert not found.found
    assert "code -6" in found.detail


async def test_who_may_not_open_it_is_told_how(stand_in: Callable[[str], Stand]) -> None:
    stand_in("echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1")
    found = await probe_kvm(None)
    assert "chgrp kvm" in found.remedy


async def test_a_guest_that_stands_still_is_given_up_by_the_clock(
    stand_in: Callable[[str], Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "PATIENCE", 0.2)
    stand_in("exec sleep 1000")
    found = await probe_kvm(None)
    assert not found.found
    assert "did not end" in found.detail


async def test_a_guest_that_crawls_is_given_up_by_the_processor_time_it_takes(
    stand_in: Callable[[str], Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "CPU_LIMIT", 0.05)
    stand_in("while :; do :; done")
    found = await probe_kvm(None)
    assert not found.found
    assert "did not end" in found.detail


async def test_a_slow_machine_is_not_taken_for_a_guest_that_crawls(
    stand_in: Callable[[str], Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on while others have the processor; the guest's own time does not."""
    monkeypatch.setattr(kvm, "CPU_LIMIT", 0.5)
    stand_in(f"sleep 1; exit {KNOWN_END}")
    assert (await probe_kvm(None)).found


async def test_without_a_device_nothing_is_started(
    stand_in: Callable[[str], Stand], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand = stand_in(f"exit {KNOWN_END}")
    monkeypatch.setattr(kvm, "KVM", tmp_path / "none")
    found = await probe_kvm(None)
    assert (found.found, stand.calls()) == (False, [])
    assert found.detail == "there is no /dev/kvm"


async def test_qemu_itself_with_a_guest_that_ends_otherwise() -> None:
    wrong = firmware().replace(b"\xb0\x10", b"\xb0\x11")
    code, _, words = await run_guest("tcg", None, DEADLINE, guest=wrong)
    assert code == (0x11 << 1) | 1, words
    code, _, words = await run_guest("tcg", None, DEADLINE)
    assert code == KNOWN_END, words


def test_the_guest_starts_where_a_processor_does() -> None:
    image = firmware()
    assert len(image) == 1 << 16
    target = 0xFFF3 + int.from_bytes(image[0xFFF1:0xFFF3], "little", signed=True)
    assert image[0xFFF0] == 0xE9
    assert image[target : target + 2] == b"\x66\xb9"
    assert KNOWN_END == (0x10 << 1) | 1
