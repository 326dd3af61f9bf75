"""query-migrate's answers, as QEMU gives them at different times."""

from __future__ import annotations

from serai.drivers.hypervisor.base import MigrationStats
from serai.drivers.hypervisor.migration import parse_stats


def test_before_any_migration() -> None:
    assert parse_stats({}) == MigrationStats("none")


def test_completed() -> None:
    ram = {
        "total": 67641344,
        "transferred": 814842,
        "remaining": 0,
        "dirty-sync-count": 2,
        "mbps": 931.248,
        "dirty-pages-rate": 7,
    }
    info = {"status": "completed", "total-time": 17, "downtime": 7, "setup-time": 1, "ram": ram}
    assert parse_stats(info) == MigrationStats("completed", 7.0, 814842, 2)


def test_failed() -> None:
    assert parse_stats({"status": "failed", "error-desc": "Connection refused"}).error == "Connection refused"
