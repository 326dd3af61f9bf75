"""The Python packages are pinned, all of them: what others bring too."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGING = Path(__file__).parents[2] / "packaging"
PIN = re.compile(r"([\w.-]+)(\[[\w,]+\])?==([\w.]+)")
"""A name and a version, and neither an address nor a hash."""


def lines(name: str) -> list[str]:
    text = (PACKAGING / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines(name):
        pin = PIN.fullmatch(line)
        assert pin is not None, f"packaging/{name}: {line} is no NAME==VERSION"
        found[canonicalize_name(pin[1])] = pin[3]
    return found


def brought(*, anywhere: bool) -> set[str]:
    """The direct requirements and all that they bring here; with `anywhere`, on other Pythons and machines as well."""
    todo = [Requirement(line) for name in ("requirements.txt", "requirements-dev.txt") for line in lines(name)]
    seen: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        for extra in ("", *wanted.extras):
            key = (canonicalize_name(wanted.name), extra)
            if key in seen:
                continue
            seen.add(key)
            try:
                needs = [Requirement(text) for text in metadata.requires(wanted.name) or ()]
            except metadata.PackageNotFoundError:
                continue  # not for this Python or machine: what it would bring is not known here
            todo += [need for need in needs if _applies(need, extra, anywhere=anywhere)]
    return {name for name, _ in seen}


def _applies(need: Requirement, extra: str, *, anywhere: bool) -> bool:
    if need.marker is None:
        return not extra
    if anywhere and "extra" not in str(need.marker):
        return True
    return need.marker.evaluate({"extra": extra})


def test_every_package_is_pinned_and_every_pin_is_of_a_package() -> None:
    pinned = set(pins("constraints.txt"))
    assert not brought(anywhere=False) - pinned, "not in packaging/constraints.txt"
    assert not pinned - brought(anywhere=True), "in packaging/constraints.txt, and nothing needs it"


def test_what_is_pinned_twice_is_pinned_alike() -> None:
    everything = pins("constraints.txt")
    direct = pins("requirements.txt") | pins("requirements-dev.txt")
    assert {name: everything.get(name) for name in direct} == direct


def test_what_is_installed_is_what_is_pinned() -> None:
    wanted = pins("constraints.txt")
    here = {name: metadata.version(name) for name in wanted if name in brought(anywhere=False)}
    assert here == {name: wanted[name] for name in here}, "run script/setup"
