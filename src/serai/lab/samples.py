"""What a prober wrote down, and what follows from it: pure functions and the report.

An outage is what a client sees: a gap in the replies. Take the times at which replies arrived, in order; a gap is the
time between two that follow one another. Requests and replies that were held up and delivered late count as delivered,
at the time they arrived. Gaps from the threshold up are listed; `worst_ms` is the longest gap of all, listed or not (at
rest it is a little over the interval). The time from the first request to the first reply and from the last reply to
the last request count as gaps too, so that an address that never answers is one outage from begin to end; the last one
is not `ended`, since nobody saw how long it would have lasted.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from serai.schema.errors import HostError
from serai.schema.resource import Frozen

NS = 1_000_000_000
MS = 1_000_000


class Kind(StrEnum):
    """What is sent."""

    ICMP = "icmp"
    UDP = "udp"


class Outage(Frozen):
    """A gap in the replies. `start` in seconds since the probe began; `ended` is false if no reply came after it.

    `own_ms`: by how much the prober itself was late in that time. Near `ms`, the gap is the prober's (or the whole
    machine stood still), and says nothing of the address.
    """

    kind: Kind
    start: float
    ms: float
    ended: bool = True
    own_ms: float = 0.0


class RoundTrips(Frozen):
    """Milliseconds; none without a single reply."""

    median: float | None = None
    p99: float | None = None
    max: float | None = None


class KindReport(Frozen):
    """One kind of request. `refused`: packets that the kernel would not send, or was told are unreachable."""

    sent: int
    received: int
    lost: int
    refused: int
    rtt_ms: RoundTrips
    outages: list[Outage] = Field(default_factory=list)
    worst_ms: float


class Noise(Frozen):
    """The prober's own: by how much its beats were late. An outage no longer than `worst_ms` may be of its making."""

    scheduling: str
    median_ms: float
    p99_ms: float
    worst_ms: float


class ProbeReport(Frozen):
    """What a client of `address` saw: the sums over all kinds, the outages of all kinds in order, each kind apart."""

    address: str
    started: datetime
    seconds: float
    interval_ms: float
    threshold_ms: float
    sent: int
    received: int
    lost: int
    rtt_ms: RoundTrips
    outages: list[Outage]
    worst_ms: float
    kinds: dict[Kind, KindReport]
    own: Noise

    def lines(self) -> list[str]:
        text = [f"{self.address}: a request of each kind every {self.interval_ms:g} ms for {self.seconds:.1f} s"]
        for kind, report in self.kinds.items():
            trip = report.rtt_ms
            times = f", round trip {trip.median:.2f} ms (p99 {trip.p99:.2f}, max {trip.max:.2f})" if trip.median else ""
            counts = f"{report.sent} sent, {report.lost} lost"
            text.append(f"{kind}: {counts}{times}, longest gap in replies {report.worst_ms:.1f} ms")
            text += [
                f"  outage of {outage.ms:.1f} ms at {outage.start:.3f} s{_remark(outage)}" for outage in report.outages
            ]
        text.append(f"the prober itself was late by {self.own.worst_ms:.2f} ms at most ({self.own.scheduling})")
        return text


def _remark(outage: Outage) -> str:
    text = "" if outage.ended else ", not ended"
    return text + (f" (the prober's own delay: {outage.own_ms:.1f} ms)" if outage.own_ms > outage.ms / 2 else "")


class Series(Frozen):
    """One kind's samples: when request N was sent and answered, ns of one clock; 0: never answered."""

    sent: Sequence[int]
    answered: Sequence[int]
    late: Sequence[int] = ()
    """By how much each request was sent later than planned, in ns; none: not known."""
    refused: int = 0


def default_threshold(interval_ns: int) -> int:
    """From where a gap is listed: ten intervals, at least 20 ms; in ns."""
    return max(10 * interval_ns, 20 * MS)


def gaps(kind: Kind, series: Series, begin: int) -> list[Outage]:
    """Every gap of one kind; see the module's text. `begin` is when the probe began, in ns."""
    if not series.sent:
        return []
    first, last = series.sent[0], series.sent[-1]
    arrivals = sorted(time for time in series.answered if time)
    found = []
    previous = first
    for arrival in arrivals:
        found.append(Outage(kind=kind, start=(previous - begin) / NS, ms=(arrival - previous) / MS))
        previous = arrival
    if last > previous or not arrivals:
        found.append(Outage(kind=kind, start=(previous - begin) / NS, ms=(last - previous) / MS, ended=False))
    return found


def judge(kind: Kind, series: Series, begin: int, threshold: int) -> KindReport:
    """One kind's report; `threshold` in ns."""
    received = sum(1 for time in series.answered if time)
    found = gaps(kind, series, begin)
    return KindReport(
        sent=len(series.sent),
        received=received,
        lost=len(series.sent) - received,
        refused=series.refused,
        rtt_ms=trips(round_trips(series)),
        outages=[_with_own(gap, series, begin) for gap in found if gap.ms * MS >= threshold],
        worst_ms=max((gap.ms for gap in found), default=0.0),
    )


def _with_own(gap: Outage, series: Series, begin: int) -> Outage:
    if not series.late:
        return gap
    start = begin + gap.start * NS
    # The request after the gap's end is the one that the stall held up.
    first, last = bisect_right(series.sent, start), bisect_right(series.sent, start + gap.ms * MS) + 1
    return gap.model_copy(update={"own_ms": max(series.late[first:last], default=0) / MS})


def round_trips(series: Series) -> list[int]:
    """The round trips of the answered requests, in ns."""
    return [after - before for before, after in zip(series.sent, series.answered, strict=True) if after]


def trips(times: Sequence[int]) -> RoundTrips:
    if not times:
        return RoundTrips()
    order = sorted(times)
    return RoundTrips(median=quantile(order, 0.5) / MS, p99=quantile(order, 0.99) / MS, max=order[-1] / MS)


def quantile(order: Sequence[int], share: float) -> int:
    """The nearest-rank quantile of sorted values."""
    return order[min(int(len(order) * share), len(order) - 1)]


def load(file: Path, threshold_ns: int | None = None) -> ProbeReport:
    """The report from a prober's file. Raises HostError if the file is not whole."""
    with file.open("rb") as source:
        header = json.loads(source.readline())
        late = _take(source.read(8 * header["beats"]), header["beats"], file)
        everything = {}
        for name, refused in zip(header["kinds"], header["refused"], strict=True):
            sent, answered = (_take(source.read(8 * header["beats"]), header["beats"], file) for _ in range(2))
            everything[Kind(name)] = Series(sent=sent, answered=answered, late=late, refused=refused)
    interval = int(header["interval_ns"])
    threshold = default_threshold(interval) if threshold_ns is None else threshold_ns
    begin = min((series.sent[0] for series in everything.values() if series.sent), default=0)
    end = max((series.sent[-1] for series in everything.values() if series.sent), default=0)
    kinds = {kind: judge(kind, series, begin, threshold) for kind, series in everything.items()}
    order = sorted(late)
    return ProbeReport(
        address=header["address"],
        started=datetime.fromtimestamp(header["started"], UTC),
        seconds=(end - begin + interval) / NS,
        interval_ms=interval / MS,
        threshold_ms=threshold / MS,
        sent=sum(report.sent for report in kinds.values()),
        received=sum(report.received for report in kinds.values()),
        lost=sum(report.lost for report in kinds.values()),
        rtt_ms=trips([time for series in everything.values() for time in round_trips(series)]),
        outages=sorted((gap for report in kinds.values() for gap in report.outages), key=lambda gap: gap.start),
        worst_ms=max((report.worst_ms for report in kinds.values()), default=0.0),
        kinds=kinds,
        own=Noise(
            scheduling=header["scheduling"],
            median_ms=quantile(order, 0.5) / MS if order else 0.0,
            p99_ms=quantile(order, 0.99) / MS if order else 0.0,
            worst_ms=order[-1] / MS if order else 0.0,
        ),
    )


def _take(data: bytes, count: int, file: Path) -> Sequence[int]:
    values = array("q")
    if len(data) != 8 * count:
        raise HostError("a probe's file is cut short", field="file", value=file)
    values.frombytes(data)
    return values.tolist()
