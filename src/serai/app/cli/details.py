"""What `show` prints of one resource: every column of its kind, one a line, and what only one kind has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from serai.app.cli.views import COLUMNS, took
from serai.schema.units import format_duration, format_size


def rows(kind: str, item: Any) -> Iterator[tuple[str, str]]:
    """Title and text of each line."""
    for column in COLUMNS[kind]:
        text = column.text(item)
        # A job's error is told below, with what to do.
        if text != "-" and not (kind == "job" and column.title == "ERROR"):
            yield column.title.capitalize(), text
    if getattr(item, "description", ""):
        yield "Description", item.description
    if kind == "vm":
        yield from _vm(item)
    elif kind == "job":
        yield from _job(item)
    elif kind == "host" and item.status.facts is not None:
        yield from _host(item.status.facts)


def _vm(item: Any) -> Iterator[tuple[str, str]]:
    status = item.status
    if status.placement:
        yield "Placed", status.placement
    for condition in status.conditions:
        yield condition.type.capitalize(), condition.message
    if status.last_migration is not None:
        move = status.last_migration
        figures = [f"{title[0].lower()}{title[1:]} {text}" for title, text in migration(move.model_dump(mode="json"))]
        yield "Last move", "; ".join([f"from {move.source} to {move.destination}", *figures])


def _host(facts: Any) -> Iterator[tuple[str, str]]:
    for role, address in facts.addresses.items():
        yield f"{role.capitalize()} address", address
    for ability in facts.abilities:
        if not ability.found:
            yield f"No {ability.name}", " ".join(part for part in (f"{ability.detail}.", ability.remedy) if part)


def _job(item: Any) -> Iterator[tuple[str, str]]:
    if item.reason:
        yield "Reason", item.reason
    if item.message:
        yield "Message", item.message
    for step in item.steps:
        told = item.error is not None and step.detail in (item.error.message, item.error.sentence())
        parts = (step.state, took(step), "" if told else step.detail)
        yield f"  {step.name}", " ".join(part for part in parts if part not in ("", "-"))
    if item.error is not None:
        yield "Why", item.error.sentence()
    if item.result:
        yield from migration(item.result) if "downtime_ms" in item.result else _result(item.result)


def _result(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in result.items():
        yield key.replace("_", " ").capitalize(), str(value)


def migration(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A migration's figures. The downtime is the one that QEMU reports, not what a client of the VM sees."""
    yield "Mode", str(result.get("mode", "-"))
    yield "Total", _known(result.get("total_s"), format_duration)
    yield "Downtime (QEMU's own)", _known(result.get("downtime_ms"), lambda value: f"{value:g}ms")
    yield "Rounds", _known(result.get("rounds"), str)
    yield "Sent", _known(result.get("bytes_sent"), format_size)
    phases = result.get("phases") or {}
    if phases:
        yield "Phases", ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in phases.items())


def _known(value: Any, words: Callable[[Any], str]) -> str:
    return "unknown" if value is None else words(value)
