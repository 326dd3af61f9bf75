"""The counter's rate: two measurements agree, and it is one that a processor may have."""

from __future__ import annotations

import mmap
import platform

import pytest

from serai.drivers.hypervisor import tsc


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has this counter")
def test_two_measurements_agree() -> None:
    rates = [tsc.measure_khz() for _ in range(3)]
    assert all(rate is not None and 100_000 < rate < 100_000_000 for rate in rates)
    whole = sorted(rate for rate in rates if rate is not None)
    assert whole[1] - whole[0] < whole[1] / 1000 or whole[2] - whole[1] < whole[1] / 1000


def test_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mmap, "mmap", refused)
    assert tsc.measure_khz() is None
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert tsc.measure_khz() is None
