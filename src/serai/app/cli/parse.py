"""The small languages of options: `shared0:4G`, `lan,ip=10.77.0.100`, `key=value`.

A wrong shape is a usage error (exit 2); a wrong value is for the models to refuse.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import typer

T = TypeVar("T")

KEY_WORDS = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")
DISK = "POOL:SIZE[,keep] or volume=NAME"
SMALL = 1 << 20
"""Bytes: far more than user-data or keys have; documents get more."""
DOCUMENT = 16 << 20
SIZE_UNITS = "K, M, G, T are 1024-based, as are KB and KiB"
ORDER = "Lower ones start first: -1000000 to 1000000, 0 unless told."
VNIC = "NETWORK[,ip=ADDRESS][,mac=MAC]"


def value(parser: Callable[[str], T], text: str, hint: str | None = None) -> T:
    """What `parser` makes of an option's text; its ValueError is a usage error."""
    try:
        return parser(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error


def disk(text: str) -> dict[str, object]:
    """A DiskSpec's fields from `POOL:SIZE[,keep]` or `volume=NAME`."""
    if text.startswith("volume="):
        return {"volume": text.removeprefix("volume=")}
    head, *flags = text.split(",")
    pool, colon, size = head.partition(":")
    if not (pool and colon and size) or flags not in ([], ["keep"]):
        raise typer.BadParameter(f"{text!r} is not {DISK}", param_hint="--disk")
    return {"pool": pool, "size": size, **({"keep": True} if flags else {})}


def vnic(text: str) -> dict[str, object]:
    """A VnicSpec's fields from `NETWORK[,ip=ADDRESS][,mac=MAC]`."""
    network, *rest = text.split(",")
    fields = dict(item.partition("=")[::2] for item in rest)
    if not network or "=" in network or not set(fields) <= {"ip", "mac"} or not all(fields.values()):
        raise typer.BadParameter(f"{text!r} is not {VNIC}", param_hint="--network")
    if "mac" in fields:
        fields["mac"] = fields["mac"].lower()
    return {"network": network, **fields}


def labels(pairs: list[str] | None) -> dict[str, str] | None:
    """Labels from `KEY=VALUE` words; none if none were given."""
    if pairs is None or not pairs:
        return None
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--label")
        result[key] = value
    return result


def new_labels(have: dict[str, str], added: dict[str, str], removed: list[str]) -> dict[str, object]:
    """An edit's `labels`, which are sent as a whole; nothing if they stay."""
    if not added and not removed:
        return {}
    return {"labels": {key: value for key, value in {**have, **added}.items() if key not in removed}}


def ssh_key(text: str) -> list[str]:
    """Public keys: `text` is one itself, or names a file that holds some."""
    if text.startswith(KEY_WORDS):
        return [text.strip()]
    lines = [line.strip() for line in read(text, "--ssh-key").splitlines()]
    keys = [line for line in lines if line.startswith(KEY_WORDS)]
    if not keys:
        raise typer.BadParameter(f"{text} holds no public key", param_hint="--ssh-key")
    return keys


def read(name: str, hint: str, limit: int = SMALL) -> str:
    """A text file's content, at most `limit` bytes; `-` is standard input."""
    if name == "-":
        return _text(sys.stdin.buffer.read(limit + 1), "standard input", hint, limit)
    file = Path(name).expanduser()
    try:
        with _open_regular(file, name, hint) as opened:
            return _text(opened.read(limit + 1), name, hint, limit)
    except OSError as error:
        raise typer.BadParameter(f"{name} cannot be read: {error.strerror}", param_hint=hint) from error


def _text(data: bytes, name: str, hint: str, limit: int) -> str:
    if len(data) > limit:
        raise typer.BadParameter(f"{name} is larger than {limit >> 10}K: is it the right file?", param_hint=hint)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{name} cannot be read: it is no UTF-8 text", param_hint=hint) from error


def check_regular(file: Path, name: str, hint: str) -> None:
    """Raises BadParameter unless `name` is a regular file that can be read."""
    try:
        _open_regular(file, name, hint).close()
    except OSError as error:
        what = f"there is no file {name}" if isinstance(error, FileNotFoundError) else None
        raise typer.BadParameter(what or f"{name} cannot be read: {error.strerror}", param_hint=hint) from error


def _open_regular(file: Path, name: str, hint: str) -> BinaryIO:
    """Opened without waiting: a FIFO that nobody writes to would keep us for ever, a device may never end."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        kind = "a folder" if file.is_dir() else "a device or pipe"
        advice = "" if hint == "FILE" else "; for what another program writes, use '-' (standard input)"
        raise typer.BadParameter(f"{name} is {kind}, not a file{advice}", param_hint=hint)
    return os.fdopen(descriptor, "rb")
