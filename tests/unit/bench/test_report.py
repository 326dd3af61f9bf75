"""The demo's report: every promise can be broken, and says why."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.demo import LONGEST_OUTAGE, answers_again
from bench.report import BrokenError, Report
from serai.lab.samples import Kind, Noise, Outage, ProbeReport, RoundTrips
from serai.schema.errors import InvalidError


def seen(worst_ms: float, *outages: Outage) -> ProbeReport:
    """What a probe reports of two requests in three answered."""
    return ProbeReport(
        address="10.77.0.100",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=6.0,
        interval_ms=2.0,
        threshold_ms=20.0,
        sent=3000,
        received=2000,
        lost=1000,
        rtt_ms=RoundTrips(),
        outages=list(outages),
        worst_ms=worst_ms,
        kinds={},
        own=Noise(scheduling="fifo", median_ms=0.0, p99_ms=0.0, worst_ms=0.0),
    )


def gap(ms: float, *, ended: bool = True, kind: Kind = Kind.UDP) -> Outage:
    return Outage(kind=kind, start=1.0, ms=ms, ended=ended)


@pytest.mark.parametrize(
    ("report", "ok", "detail"),
    [
        (seen(80.0, gap(80.0)), True, "longest gap in replies 80 ms, 1000 of 3000 lost"),
        (seen(3.0), True, "longest gap in replies 3 ms"),
        (seen(LONGEST_OUTAGE + 1, gap(LONGEST_OUTAGE + 1)), False, "longest gap in replies 3001 ms"),
        (seen(900.0, gap(80.0), gap(900.0, ended=False)), False, "no reply to udp at the end"),
    ],
)
def test_a_vm_answers_again_if_every_gap_ended_in_time(report: ProbeReport, ok: bool, detail: str) -> None:
    told = answers_again(report)
    assert told[0] is ok
    assert detail in told[1]


def test_what_fails_in_a_promise_breaks_it_and_the_rest_goes_on() -> None:
    report = Report()
    with report.promise("kept") as told:
        told.kept(True, "seen")
    with report.promise("unsaid"):
        pass
    with report.promise("not kept") as told:
        told.kept(False, "seen otherwise")
    with report.promise("failed") as told:
        told.kept(True, "too early")
        raise InvalidError("this is no name", field="name", value="-", remedy="Give a word.")
    with report.promise("a bug"):
        raise KeyError("key")
    assert [tuple(check.values()) for check in report.checks] == [
        ("kept", True, "seen"),
        ("unsaid", True, ""),
        ("not kept", False, "seen otherwise"),
        ("failed", False, "this is no name (name: -). Give a word."),
        ("a bug", False, "KeyError: 'key'"),
    ]
    assert report.failed[0] == "not kept: seen otherwise"


def test_a_broken_vital_promise_ends_it() -> None:
    report = Report()
    with report.vital("kept") as told:
        told.kept(True)
    with pytest.raises(BrokenError, match="not kept"), report.vital("not kept") as told:
        told.kept(False)
    with pytest.raises(BrokenError, match="failed"), report.vital("failed"):
        raise OSError("no such device")
    assert report.failed == ["not kept", "failed: no such device"]


def test_a_cancelled_promise_is_neither_kept_nor_broken() -> None:
    report = Report()
    for promise in (report.promise("one"), report.vital("two")):
        with pytest.raises(asyncio.CancelledError), promise:
            raise asyncio.CancelledError
    assert report.checks == []


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    assert Report().summary() == ["  no figures: there was no move"]
    partly = Report(migration={"outage_ms": 80.25, "until_it_runs_s": None, "rounds": None, "bytes_sent": None})
    lines = partly.summary()
    assert lines[2].split() == ["outage", "from", "outside", "80.2", "unknown", "ms"]
    assert lines[5] == "  unknown rounds, unknown sent; phases on the source:"
    partly.write(tmp_path / "build" / "report.json")
    assert json.loads((tmp_path / "build/report.json").read_text())["migration"]["outage_ms"] == 80.25
