"""README and tutorial: each command does what is printed beneath it."""

from __future__ import annotations

import pytest

from .printed import PROGRESS, TOP, Outcome, Printed, differences, in_lab, shape


@pytest.mark.timeout(900)  # a whole lab, and every command of a document: long on a machine that does other things
@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
async def test_every_command_is_as_printed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERAI_CONTEXT", raising=False)
    outcomes = await in_lab(TOP / name)
    assert outcomes
    wrong = [
        f"{name}:{outcome.printed.line + 1}: {outcome.printed.command}: wanted: {line!r}; came: {outcome.output}"
        for outcome in outcomes
        for line in differences(outcome)
    ]
    assert not wrong, "\n".join(wrong)


def test_shapes() -> None:
    printed = "9de908021edd  vm.migrate    vm/web1       done   -   1.9s   11.0s"
    assert shape(printed) == shape("0123456789ab  vm.migrate  vm/web1  done   -   850ms   2m01s")
    assert shape(printed) != shape(printed.replace("done", "failed"))


def outcome(command: str, printed: str, came: str, code: int = 0) -> Outcome:
    return Outcome(Printed(0, command, printed.splitlines(), 1, 1), command, code, came.splitlines())


PROBE = "lab probe 10.77.0.100 --for 2s"
PROBED = """\
10.77.0.100: a request of each kind every 2 ms for 2.0 s
icmp: 1000 sent, 0 lost, round trip 0.39 ms (p99 0.93, max 2.13), longest gap in replies 3.7 ms
the prober itself was late by 0.17 ms at most (fifo)"""
OUTAGE = "  outage of 26.6 ms at 0.000 s"
EVENTS = (
    "33   2026-11-24 04:29:29  job.state  vm/web1  to h2\n36   2026-11-24 04:29:30  vm.moved  vm/web1  web1 is on h2"
)
REPORTED = "43   2026-11-25 20:51:32  vm.status  vm/web1  -"
REFUSED = "serai: VM web1 runs on h2 already (to: h2). Name another host."
CONSOLE = "cat /proc/uptime\n10.40 7.65\n/ #"


@pytest.mark.parametrize(
    "same",
    [
        outcome("serai vm list", "web1  running  h1  1", "web1   running   h1   2"),
        outcome("serai vm migrate web1", REFUSED, REFUSED, 1),
        outcome("serai job wait ab", f"{PROGRESS}\n{REFUSED}", f"step move\n{REFUSED}", 1),
        outcome("serai job wait ab", PROGRESS, "step move: done"),
        outcome("serai diff -f site.yaml", "--- a\n+++ b", "--- a\n+++ b", 1),
        outcome("serai diff -f site.yaml", "", ""),
        outcome(PROBE, PROBED, PROBED.replace("0 lost", "7 lost") + f"\n{OUTAGE}"),
        outcome(PROBE, f"{PROBED}\n{OUTAGE}", PROBED),
        outcome("serai event list | tail -n 2", EVENTS, "\n".join(reversed(EVENTS.splitlines()))),
        outcome("serai event list | tail -n 2", EVENTS, f"{EVENTS.splitlines()[1]}\n{REPORTED}"),
        outcome("echo | timeout 5 serai vm console web1", CONSOLE, f"[ 9.1] a kernel's word\n{CONSOLE}", 124),
    ],
)
def test_what_is_as_printed(same: Outcome) -> None:
    assert differences(same) == []


@pytest.mark.parametrize(
    "other",
    [
        outcome("serai vm list", "web1  running  h1", "web1  running  h2"),
        outcome("serai vm list", "web1  running  h1", "web1  running  h1", 1),
        outcome("serai vm migrate web1", REFUSED, REFUSED, 0),
        outcome("serai vm migrate web1", REFUSED, REFUSED, 2),
        outcome("serai job wait ab", PROGRESS, "step move: failed", 1),
        outcome("serai job wait ab", PROGRESS, f"step move: done\n{REFUSED}"),
        outcome("serai diff -f site.yaml", "--- a", "--- a", 0),
        outcome("serai diff -f site.yaml", "", "--- a", 1),
        outcome(PROBE, PROBED, "10.77.0.100: a request of each kind every 2 ms for 2.0 s"),
        outcome(PROBE, PROBED, f"{PROBED}\n{OUTAGE}, not ended"),
        outcome(PROBE, PROBED, "Traceback (most recent call last):"),
        outcome("cat probe.txt", PROBED, "cat: probe.txt: No such file or directory", 1),
        outcome("serai event list | tail -n 2", EVENTS, EVENTS.replace("vm.moved", "vm.lost")),
        outcome("serai event list | tail -n 2", EVENTS, EVENTS.splitlines()[0]),
        outcome("echo | timeout 5 serai vm console web1", CONSOLE, "cat /proc/uptime\n/ #", 124),
        outcome("echo | timeout 5 serai vm console web1", CONSOLE, CONSOLE, 1),
    ],
)
def test_what_is_not_as_printed(other: Outcome) -> None:
    assert differences(other)
