"""The network probe on this machine."""

from __future__ import annotations

import pytest

from serai.drivers.network import probe
from serai.lib import namespace
from serai.schema.errors import HostError


async def test_what_this_machine_can_do() -> None:
    found = {ability.name: ability for ability in await probe.probe()}
    for name in ("network namespaces", "taps", "bridges", "veth pairs", "HTB"):
        assert found[name].found, found[name]
    assert all(ability.remedy for ability in found.values() if not ability.found)
    assert {name for name, ability in found.items() if ability.required} == {"network namespaces", "taps", "bridges"}


async def test_what_is_missing_is_said_with_a_remedy_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise HostError("cannot do it: Operation not supported")

    trial = probe.Trial("wonders", "miracles", refuse)
    monkeypatch.setattr(probe, "TRIALS", (trial, *probe.TRIALS))
    monkeypatch.setattr(probe, "new_id", lambda: "test99999999")
    found = {ability.name: ability for ability in await probe.probe()}
    assert not found["wonders"].found
    assert found["wonders"].detail == "cannot do it: Operation not supported"
    assert found["wonders"].remedy == probe.KERNEL
    assert found["bridges"].found
    assert not namespace.exists("serai-probe-test99")
