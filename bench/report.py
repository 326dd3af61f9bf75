"""The demo's report: promises, each kept or not, and figures. It becomes build/demo-report.json whatever happened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from serai.schema.errors import SeraiError

UNKNOWN = "unknown"


class BrokenError(Exception):
    """A promise was broken without which the rest makes no sense. It stands in the report already."""


@dataclass
class Report:
    """What was promised, and what was measured."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    migration: dict[str, Any] = field(default_factory=dict)
    bare: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """Note one promise, kept or not, and say so."""
        self.checks.append({"name": name, "ok": ok, "detail": detail})
        print(f"  {'ok  ' if ok else 'FAIL'}  {name}" + (f": {detail}" if detail else ""), flush=True)

    def promise(self, name: str) -> Promise:
        """A check around what it takes to keep a promise: what fails in it breaks the promise, and is the detail."""
        return Promise(self, name)

    def vital(self, name: str) -> VitalPromise:
        """A promise without which there is no going on: once broken, BrokenError is raised."""
        return VitalPromise(self, name)

    @property
    def failed(self) -> list[str]:
        """The broken promises, each with its reason."""
        return [": ".join(filter(None, (one["name"], one["detail"]))) for one in self.checks if not one["ok"]]

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def summary(self) -> list[str]:
        """The figures as lines for people; what is not known is not left out."""
        ours, bare = self.migration, self.bare
        if not ours:
            return ["  no figures: there was no move"]
        place = f"{self.machine.get('cpus')} cores, QEMU {self.machine.get('qemu')} with {self.machine.get('accel')}"
        sent = ours.get("bytes_sent")
        megabytes = UNKNOWN if sent is None else f"{sent / 1e6:.0f} MB"
        rounds = UNKNOWN if ours.get("rounds") is None else ours["rounds"]
        return [
            f"  {place}, links 1 Gbit/s, TLS",
            "                             Serai   bare script",
            f"  outage from outside   {_figure(ours, 'outage_ms', 9, 1)} {_figure(bare, 'outage_ms', 12, 1)}  ms",
            f"  request until it runs {_figure(ours, 'until_it_runs_s', 9, 2)} {_figure(bare, 'total_s', 12, 2)}  s",
            f"  QEMU's own downtime   {_figure(ours, 'downtime_ms', 9, 0)} {_figure(bare, 'downtime_ms', 12, 0)}"
            "  ms (never the outage)",
            f"  {rounds} rounds, {megabytes} sent; phases on the source:",
            *(f"    {phase:<12}{seconds * 1000:9.1f} ms" for phase, seconds in (ours.get("phases") or {}).items()),
        ]


def _figure(figures: dict[str, Any], key: str, width: int, digits: int) -> str:
    value = figures.get(key)
    return f"{UNKNOWN:>{width}}" if value is None else f"{value:{width}.{digits}f}"


@dataclass
class Promise:
    """One promise under way: say in `kept` what was seen. Unsaid, it is kept if nothing failed."""

    report: Report
    name: str
    ok: bool = True
    detail: str = ""

    def kept(self, ok: bool, detail: str = "") -> None:
        """Whether it was kept, and what was seen."""
        self.ok, self.detail = ok, detail

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        return self._note(error)

    def _note(self, error: BaseException | None) -> bool:
        if isinstance(error, Exception):
            self.kept(False, reason(error))
        elif error is not None:
            return False  # cancelled: whoever did so says why
        self.report.check(self.name, self.ok, self.detail)
        return True


class VitalPromise(Promise):
    """A promise that ends the demo when it is broken."""

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> Literal[False]:
        if self._note(error) and not self.ok:
            raise BrokenError(self.name) from error
        return False


def reason(error: BaseException) -> str:
    """An error as one sentence; what a bug raises says of which kind it is."""
    if isinstance(error, SeraiError):
        return error.info.sentence()
    text = " ".join(str(error).split())
    return text if text and isinstance(error, OSError | RuntimeError) else f"{type(error).__name__}: {text}"
