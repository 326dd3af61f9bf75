"""`runtime.json` in a VM's run folder: what is needed to find its QEMU again, and to be sure that it is that one.

A number alone does not name a process. With its start time, its command line and a pidfd opened before both were read,
it does. The folder is on a file system that does not outlive the machine's boot, and nor does the record.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from serai.lib import atomicfile
from serai.lib.process import Watched, adopt, start_time
from serai.schema.encoding import encode
from serai.schema.launch import Launch
from serai.schema.resource import Frozen

log = logging.getLogger(__name__)

FILE = "runtime.json"
LOG = "qemu.log"
LOG_MAX = 1 << 20
"""Bytes: the folder is in memory on most machines."""
LOG_KEPT = 64 << 10
LOG_CUT = b"(earlier lines were cut)\n"
_NAME = re.compile(r"guest=([0-9a-f]{12}),.*", re.DOTALL)
"""What `argv` gives to `-name`, its first option."""
SOCKETS = ("qmp.sock", "console.sock", "qga.sock")


class Runtime(Frozen):
    """`start_time` in clock ticks since boot; `argv_hash` of the command line; `launch` as it is now, with secrets."""

    pid: int
    start_time: int
    argv_hash: str
    launch: Launch
    tls_dir: Path | None
    cgroups: tuple[Path, ...] = ()


def argv_hash(argv: Sequence[str]) -> str:
    """The same for a command line to be started and for that of the process."""
    return hashlib.sha256(b"".join(os.fsencode(argument) + b"\0" for argument in argv)).hexdigest()


def write(run_dir: Path, runtime: Runtime) -> None:
    """Readable to nobody but us: the launch holds secrets."""
    atomicfile.write_bytes(run_dir / FILE, encode(runtime), mode=0o600)


def read(run_dir: Path) -> Runtime | None:
    """None if there is no record. It is written whole or not at all."""
    try:
        return Runtime.model_validate_json((run_dir / FILE).read_bytes())
    except FileNotFoundError:
        return None


def find(runtime: Runtime) -> Watched | None:
    """The process of a record, held; None if it is gone, or its number is another's by now."""
    watched = adopt(runtime.pid, expect=runtime.launch.vm)
    if watched is None:
        return None
    try:
        same = start_time(runtime.pid) == runtime.start_time
        same = same and argv_hash(psutil.Process(runtime.pid).cmdline()) == runtime.argv_hash
    except psutil.Error:
        return None
    return watched if same and watched.alive else None


def find_all() -> list[tuple[str, Watched]]:
    """Every VM's QEMU that runs in our network namespace, with or without a record: it says itself whose it is."""
    # Agents that share a kernel, as a lab's do, each have a network of their own; mounts they may not tell apart.
    here = os.stat("/proc/self/ns/net")
    found = []
    for one in psutil.process_iter(["cmdline"]):
        match one.info["cmdline"]:
            case [program, "-name", name, *_] if "qemu-system" in Path(program).name:
                named = _NAME.fullmatch(name)
            case _:
                continue
        try:
            if named is None or not os.path.samestat(os.stat(f"/proc/{one.pid}/ns/net"), here):
                continue
        except OSError:
            continue  # gone meanwhile
        watched = adopt(one.pid, expect=f"guest={named[1]},")
        if watched is not None:
            found.append((named[1], watched))
    return found


def clear(run_dir: Path, pid: int) -> None:
    """Remove what belongs to a process that is gone, unless another has the folder by now; its log stays."""
    present = read(run_dir)
    if present is not None and present.pid != pid:
        return
    for name in (FILE, *SOCKETS):
        (run_dir / name).unlink(missing_ok=True)


def bound_log(run_dir: Path) -> None:
    """Cut QEMU's log down to its end once it is longer than `LOG_MAX`: a guest can have QEMU complain for ever.

    QEMU appends, so it goes on at the new end. What it writes between the reading and the cut is lost.
    """
    try:
        with (run_dir / LOG).open("r+b") as file, (run_dir / LOG).open("ab") as end:
            size = file.seek(0, os.SEEK_END)
            if size > LOG_MAX:
                file.seek(size - LOG_KEPT)
                kept = file.read(LOG_KEPT)
                file.truncate(0)
                end.write(LOG_CUT + kept)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be cut: %s", run_dir / LOG, error)


def log_tail(run_dir: Path, size: int = 2000) -> str:
    """The end of QEMU's own log."""
    try:
        with (run_dir / LOG).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
