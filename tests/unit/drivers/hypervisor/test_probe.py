"""What is remembered of a probe, and what makes it look again."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.drivers.hypervisor import probe
from serai.drivers.hypervisor.argv import Features
from serai.drivers.hypervisor.base import HypervisorFacts
from serai.drivers.hypervisor.probe import KNOWN_END, MEMORY_FILE, Findings, find_out, firmware
from serai.schema.host import Ability


def findings(version: str) -> Findings:
    facts = HypervisorFacts(
        version, ["pc-q35-10.0"], ["events"], "tcg", "cpu", ["sse"], [Ability(name="a", found=True)]
    )
    return Findings(facts, Features(q35_options=frozenset({"smm", "hpet"})))


async def test_remembered_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str | None] = []

    async def look(user: str | None) -> Findings:
        looked.append(user)
        return findings(f"10.0.{len(looked)}")

    monkeypatch.setattr(probe, "_look", look)
    state = tmp_path / "state"
    first = await find_out(state, None)
    assert await find_out(state, None) == first
    assert looked == [None]
    assert await find_out(state, "somebody-else") != first
    (state / MEMORY_FILE).write_text("{half a docu")
    await find_out(state, None)
    assert looked == [None, "somebody-else", None]


def test_the_guest_starts_where_a_processor_does() -> None:
    image = firmware()
    assert len(image) == 1 << 16
    target = 0xFFF3 + int.from_bytes(image[0xFFF1:0xFFF3], "little", signed=True)
    assert image[0xFFF0] == 0xE9
    assert image[target : target + 2] == b"\x66\xb9"
    assert KNOWN_END == (0x10 << 1) | 1
