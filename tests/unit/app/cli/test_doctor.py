"""`doctor` over probes: what is found, what is missing, and when that is a failure."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from serai.app.cli import doctor
from serai.schema.host import Ability

Serai = Callable[..., Any]

FOUND = Ability(name="qemu", found=True, detail="10.0.2", required=True)
OPTIONAL = Ability(name="kvm", found=False, detail="guests do not boot", remedy="Enable nesting.")
REQUIRED = Ability(name="tgtd", found=False, remedy="apt install tgt", required=True)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*abilities: Ability) -> None:
        async def probe() -> list[Ability]:
            return list(abilities)

        module = ModuleType("serai.drivers.room.probe")
        module.__dict__["probe"] = probe
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(doctor, "PROBES", {"room": module.__name__})

    return install


def test_what_is_optional_may_be_missing(serai: Serai, probe: Callable[..., None]) -> None:
    probe(FOUND, OPTIONAL)
    ran = serai("doctor")
    assert ran.code == 0
    assert "room:" in ran.out
    assert "Enable nesting." in ran.out
    assert [ability["name"] for ability in serai("doctor", "-o", "json").json] == ["qemu", "kvm"]


def test_what_is_required_fails_with_its_remedy(serai: Serai, probe: Callable[..., None]) -> None:
    probe(FOUND, REQUIRED)
    ran = serai("doctor")
    assert ran.code == 1
    assert "apt install tgt" in ran.out
    assert "tgtd" in ran.err
    assert serai("doctor", "-o", "json").code == 1
