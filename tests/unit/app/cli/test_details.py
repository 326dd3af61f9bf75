"""What `show` and `list` say: figures that nobody measured are unknown, not zero; a state is whose word it is."""

from __future__ import annotations

from datetime import UTC, datetime

from serai.app.cli.details import migration, rows
from serai.app.cli.views import COLUMNS
from serai.schema.errors import ErrorInfo
from serai.schema.host import Ability, Host, HostFacts, HostSpec, HostStatus
from serai.schema.ids import HostId, HostName, JobId, VmId
from serai.schema.job import Job, JobState, Step, StepState
from serai.schema.resource import Condition
from serai.schema.vm import HOST_SILENT, MigrationSummary, Vm, VmSpec, VmState, VmStatus


def test_unknown_figures_of_a_move_are_called_so() -> None:
    summary = MigrationSummary(
        mode="precopy", source=HostName("h1"), destination=HostName("h2"), downtime_ms=0.0, bytes_sent=None
    )
    told = dict(migration(summary.model_dump(mode="json")))
    assert told["Downtime (QEMU's own)"] == "0ms"
    assert [told[title] for title in ("Total", "Rounds", "Sent")] == ["unknown"] * 3


def test_a_host_says_what_it_lacks_why_and_what_would_help() -> None:
    kvm = Ability(name="kvm", found=False, detail="there is no /dev/kvm", remedy="Guests run emulated (TCG). Load it.")
    facts = HostFacts(cpus=1, memory=1 << 30, accel="tcg", qemu_version="10.0.2", abilities=[kvm])
    assert facts.emulated == "emulated (tcg): there is no /dev/kvm"
    host = Host(
        name=HostName("h1"),
        id=HostId("a" * 12),
        generation=1,
        created=datetime.now(UTC),
        spec=HostSpec(),
        status=HostStatus(facts=facts),
    )
    told = dict(rows("host", host))
    assert told["Accel"] == "tcg"
    assert told["No kvm"] == "there is no /dev/kvm. Guests run emulated (TCG). Load it."


def test_a_silent_hosts_word_is_marked_as_such() -> None:
    silent = Condition(type=HOST_SILENT, message="host h1 does not answer; this is what it last said")
    pending = Condition(type="pending-restart", message="memory")
    for state, conditions, shown in (
        (VmState.RUNNING, [], "running"),
        (VmState.RUNNING, [silent], "running (host offline)"),
        (VmState.PAUSED, [silent, pending], "paused (host offline, restart pending)"),
        (VmState.STOPPED, [silent], "stopped"),
    ):
        vm = Vm(
            name="web1",
            id=VmId("0" * 12),
            generation=1,
            created=datetime(2026, 1, 1, tzinfo=UTC),
            spec=VmSpec(),
            status=VmStatus(state=state, host=HostName("h1"), conditions=conditions),
        )
        listed = {column.title: column.text(vm) for column in COLUMNS["vm"]}
        told = dict(rows("vm", vm))
        assert (listed["STATE"], told["State"]) == (shown, shown)
        assert told.get("Host-silent") == (silent.message if silent in conditions else None)


def test_a_moves_figures_have_names_and_a_template_is_called_one() -> None:
    summary = MigrationSummary(
        mode="precopy", source=HostName("h1"), destination=HostName("h2"), total_s=6.2, downtime_ms=57.0, rounds=4
    )
    vm = Vm(
        name="web1",
        id=VmId("0" * 12),
        generation=1,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        spec=VmSpec(template=True),
        status=VmStatus(state=VmState.STOPPED, host=HostName("h2"), last_migration=summary),
    )
    told = dict(rows("vm", vm))
    assert told["Last move"] == (
        "from h1 to h2; mode precopy; total 6.2s; downtime (QEMU's own) 57ms; rounds 4; sent unknown"
    )
    assert told["State"] == "stopped (template)"


def test_a_jobs_error_is_told_once() -> None:
    error = ErrorInfo(code="host", message="QEMU said no", remedy="Look at its log.")
    job = Job(
        id=JobId("0" * 12),
        kind="vm.start",
        target="vm/web1",
        state=JobState.FAILED,
        requested_by="me",
        steps=[Step(name="start", state=StepState.FAILED, detail="QEMU said no. Look at its log.")],
        created=datetime(2026, 1, 1, tzinfo=UTC),
        error=error,
    )
    told = list(rows("job", job))
    assert [row for row in told if "QEMU said no" in row[1]] == [("Why", "QEMU said no. Look at its log.")]
