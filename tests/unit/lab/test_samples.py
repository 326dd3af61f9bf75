"""What follows from a prober's samples."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from serai.lab.samples import MS, Kind, Series, default_threshold, gaps, judge, load, trips
from serai.schema.errors import HostError

BEGIN = 5_000 * MS


def series(answers: Sequence[int | None], interval: int = 2) -> Series:
    """Requests every `interval` ms from BEGIN; each answered at that ms after BEGIN, or never."""
    return Series(
        sent=[BEGIN + number * interval * MS for number in range(len(answers))],
        answered=[0 if answer is None else BEGIN + answer * MS for answer in answers],
    )


def test_a_quiet_run_has_no_outage() -> None:
    report = judge(Kind.UDP, series([1, 3, 5, 7]), BEGIN, 20 * MS)
    assert (report.sent, report.received, report.lost, report.outages) == (4, 4, 0, [])
    assert report.worst_ms == 2.0


def test_lost_requests_make_a_gap_between_the_replies_around_them() -> None:
    answers = [1, 3, *[None] * 20, 45, 47]
    report = judge(Kind.ICMP, series(answers), BEGIN, 20 * MS)
    assert report.lost == 20
    (outage,) = report.outages
    assert (outage.start, outage.ms, outage.ended, outage.kind) == (0.003, 42.0, True, Kind.ICMP)
    assert report.worst_ms == 42.0


def test_requests_that_were_held_up_are_a_gap_without_a_loss() -> None:
    answers = [1, 3, *[50] * 23, 51]
    report = judge(Kind.UDP, series(answers), BEGIN, 20 * MS)
    assert report.lost == 0
    assert [outage.ms for outage in report.outages] == [47.0]


def test_replies_out_of_order_are_taken_as_they_arrived() -> None:
    assert [gap.ms for gap in gaps(Kind.UDP, series([5, 3, 4, 6]), BEGIN)] == [3.0, 1.0, 1.0, 1.0]


def test_silence_until_the_end_has_not_ended() -> None:
    report = judge(Kind.UDP, series([1, *[None] * 30]), BEGIN, 20 * MS)
    (outage,) = report.outages
    assert (outage.start, outage.ms, outage.ended) == (0.001, 59.0, False)


def test_an_address_that_never_answers_is_one_outage() -> None:
    report = judge(Kind.UDP, series([None] * 51), BEGIN, 20 * MS)
    (outage,) = report.outages
    assert (outage.start, outage.ms, outage.ended, report.received) == (0.0, 100.0, False, 0)
    assert report.rtt_ms.median is None


def test_no_request_at_all_is_no_outage() -> None:
    report = judge(Kind.UDP, Series(sent=[], answered=[]), BEGIN, 20 * MS)
    assert (report.sent, report.outages, report.worst_ms) == (0, [], 0.0)


def test_the_probers_own_delay_stands_beside_the_outage() -> None:
    # Beats at 0 and 2 ms, then one that should have been at 4 ms and was at 40.
    stalled = Series(
        sent=[BEGIN, BEGIN + 2 * MS, BEGIN + 40 * MS, BEGIN + 41 * MS],
        answered=[BEGIN + 1 * MS, BEGIN + 3 * MS, BEGIN + 41 * MS, BEGIN + 42 * MS],
        late=[0, 0, 36 * MS, 35 * MS],
    )
    (outage,) = judge(Kind.ICMP, stalled, BEGIN, 20 * MS).outages
    assert (outage.ms, outage.own_ms) == (38.0, 36.0)


def test_the_threshold_follows_the_interval() -> None:
    assert default_threshold(1 * MS) == 20 * MS
    assert default_threshold(5 * MS) == 50 * MS


def test_round_trips_are_summed_up() -> None:
    summary = trips([number * MS for number in range(1, 101)])
    assert (summary.median, summary.p99, summary.max) == (51.0, 100.0, 100.0)


def write(file: Path, kinds: dict[str, Series]) -> None:
    beats = len(next(iter(kinds.values())).sent)
    header = {
        "address": "10.77.0.100", "interval_ns": 2 * MS, "scheduling": "fifo", "started": 1.0,
        "kinds": list(kinds), "beats": beats, "refused": [0] * len(kinds),
    }  # fmt: skip
    with file.open("wb") as out:
        out.write(json.dumps(header).encode() + b"\n")
        array("q", [1000] * beats).tofile(out)
        for one in kinds.values():
            array("q", one.sent).tofile(out)
            array("q", one.answered).tofile(out)


def test_a_file_becomes_a_report_over_all_kinds(tmp_path: Path) -> None:
    write(tmp_path / "s", {"icmp": series([1] + [None] * 30), "udp": series([1 + 2 * n for n in range(31)])})
    report = load(tmp_path / "s")
    assert (report.sent, report.received, report.lost) == (62, 32, 30)
    assert [outage.kind for outage in report.outages] == [Kind.ICMP]
    assert report.worst_ms == 59.0
    assert report.kinds[Kind.UDP].worst_ms == 2.0
    assert report.own.worst_ms == 0.001
    assert any("not ended" in line for line in report.lines())
    assert load(tmp_path / "s", 1 * MS).threshold_ms == 1.0


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", {"udp": series([1, 3])})
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-4])
    with pytest.raises(HostError):
        load(tmp_path / "s")
