"""What `show` says of a migration: figures that nobody measured are unknown, not zero."""

from __future__ import annotations

from serai.app.cli.details import migration
from serai.schema.vm import MigrationSummary


def test_unknown_figures_of_a_move_are_called_so() -> None:
    summary = MigrationSummary(mode="precopy", source="h1", destination="h2", downtime_ms=0.0, bytes_sent=None)
    told = dict(migration(summary.model_dump(mode="json")))
    assert told["Downtime (QEMU's own)"] == "0ms"
    assert [told[title] for title in ("Total", "Rounds", "Sent")] == ["unknown"] * 3
