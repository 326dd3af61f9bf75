"""What `show` says of a migration: figures that nobody measured are unknown, not zero."""

from __future__ import annotations

from datetime import UTC, datetime

from serai.app.cli.details import migration, rows
from serai.schema.host import Ability, Host, HostFacts, HostSpec, HostStatus
from serai.schema.vm import MigrationSummary


def test_unknown_figures_of_a_move_are_called_so() -> None:
    summary = MigrationSummary(mode="precopy", source="h1", destination="h2", downtime_ms=0.0, bytes_sent=None)
    told = dict(migration(summary.model_dump(mode="json")))
    assert told["Downtime (QEMU's own)"] == "0ms"
    assert [told[title] for title in ("Total", "Rounds", "Sent")] == ["unknown"] * 3


def test_a_host_says_what_it_lacks_why_and_what_would_help() -> None:
    kvm = Ability(name="kvm", found=False, detail="there is no /dev/kvm", remedy="Guests run emulated (TCG). Load it.")
    facts = HostFacts(cpus=1, memory=1 << 30, accel="tcg", qemu_version="10.0.2", abilities=[kvm])
    assert facts.emulated == "emulated (tcg): there is no /dev/kvm"
    host = Host(
        name="h1",
        id="a" * 12,
        generation=1,
        created=datetime.now(UTC),
        spec=HostSpec(),
        status=HostStatus(facts=facts),
    )
    told = dict(rows("host", host))
    assert told["Accel"] == "tcg"
    assert told["No kvm"] == "there is no /dev/kvm. Guests run emulated (TCG). Load it."
