"""Sizes, rates and durations: parse what people write, store bytes, bits per second and seconds, print them back.

`Size` is an annotated Pydantic type: fields of it accept `"5G"` or plain numbers. Sizes are binary (K = 1024, as
qemu-img reads them); rates are decimal bits per second (as tc does).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

LONGEST = 24
"""Digits of a number: more than any size needs, far fewer than what a float cannot hold."""
SIZE_MAX = 1 << 60
"""Bytes of a volume at most: more than any file system keeps in one file."""
_NUMBER = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")
_SIZE = {"": 1, "b": 1} | {unit + end: 1 << 10 * (n + 1) for n, unit in enumerate("kmgtp") for end in ("", "b", "ib")}
_RATE = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
_TIME = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _parse(text: Any, what: str, example: str, units: Mapping[str, float], known: str) -> float:
    found = _NUMBER.match(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{text!r} is not a {what}; write it like {example}")
    if len(found[1]) > LONGEST:
        raise ValueError(f"a {what} has at most {LONGEST} digits; write it like {example}")
    unit = found[2].lower()
    if unit not in units:
        raise ValueError(f"{text!r} has no unit that Serai knows; use {known}")
    return float(found[1]) * units[unit]


def parse_size(value: Any) -> int:
    """Bytes from `5G`, `512MiB`, `4096` or an int. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(_parse(value, "size", "512M, 4G or 1.5T", _SIZE, "K, M, G or T (1024-based)"))


def parse_rate(value: Any) -> int:
    """Bits per second from `100mbit`, `1gbit` or an int. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(_parse(value, "rate", "100mbit or 1gbit", _RATE, "kbit, mbit or gbit"))


def parse_duration(value: Any) -> float:
    """Seconds from `30s`, `2ms`, `5m` or a number. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return _parse(value, "duration", "2ms, 30s or 5m", _TIME, "ms, s, m, h or d")


def format_size(value: int) -> str:
    """`4G`, `768M`, `1.5T`: the largest binary unit, at most one decimal; exact sizes stay exact."""
    for unit in ("P", "T", "G", "M", "K"):
        scale = _SIZE[unit.lower()]
        if value >= scale:
            number = value / scale
            return f"{number:.0f}{unit}" if number == int(number) else f"{number:.1f}{unit}"
    return f"{value}B"


def exact_size(value: int) -> str:
    """As `format_size`, where that is the very number; else bytes."""
    text = format_size(value)
    return text if parse_size(text) == value else f"{value}B"


def format_rate(value: int) -> str:
    """`100mbit`, `2.5gbit`."""
    for unit in ("tbit", "gbit", "mbit", "kbit"):
        if value >= _RATE[unit]:
            return f"{value / _RATE[unit]:g}{unit}"
    return f"{value}bit"


def format_duration(seconds: float) -> str:
    """`12ms`, `3.2s`, `4m10s`, `2h05m`, `3d4h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


Size = Annotated[int, BeforeValidator(parse_size)]
