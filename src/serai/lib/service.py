"""A long-running process: its signals, its log, its notifications to the init system.

`run` gives the process's body a `Service`: it starts its parts, calls `ready`, waits for `stopping`, and ends them in
order. SIGTERM or SIGINT asks for that; a second one cancels the body. The log goes to standard error as key=value
lines, without secrets; systemd (or whatever set NOTIFY_SOCKET) is notified when the service is ready and when it stops.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from serai.lib.redact import redact
from serai.schema.errors import SeraiError

log = logging.getLogger(__name__)

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What is no field of its own; `color_message` is Uvicorn's message once more, for a terminal."""


class KeyValueFormatter(logging.Formatter):
    """`time=… level=… logger=… msg="…"`, then the record's extra fields; a trace follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, redacted."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields.update((key, value) for key, value in vars(record).items() if key not in _PLAIN)
        line = " ".join(f"{key}={_quoted(str(value))}" for key, value in fields.items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


def _quoted(text: str) -> str:
    if text and all(mark.isprintable() and mark not in ' "=\\' for mark in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


class _AsyncioNoise(logging.Filter):
    """Drops a warning of asyncio about its own stream protocol, seen each time a TLS peer hangs up."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "eof_received() has no effect when using ssl" not in record.msg


def set_up_logging(level: int | str = logging.INFO, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (standard error by default) in the form above, from `level` up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    handler.addFilter(_AsyncioNoise())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def notify(state: str, environment: Mapping[str, str] | None = None) -> bool:
    """Tell the init system (sd_notify protocol: `READY=1`, `STATUS=…`); False if there is none that listens."""
    address = (os.environ if environment is None else environment).get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            log.warning("cannot tell the init system %s: %s", state, error)
            return False
    return True


BACKGROUND_NICE = 10


def run_in_background(nice: int = BACKGROUND_NICE) -> None:
    """Give other work on this machine the processor first: for a process that nobody waits for by the millisecond.

    Where the kernel shares the processor between sessions (autogroups), a nice value counts within its own session
    only; a process that leads one lowers the session's as well. See sched(7). Call before other threads are started.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) != os.getpid():
        return
    try:
        Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")
    except OSError as error:
        # No autogroups in this kernel, or one of the container's: the nice value is all there is.
        log.debug("this session's autogroup keeps its weight: %s", error)


class Service:
    """What the body of a process may ask of its frame."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        """Set once the process shall end; the body waits for it."""

    def ready(self, status: str = "") -> None:
        """Say that the service works now."""
        log.info("%s is ready%s", self.name, f": {status}" if status else "")
        notify("READY=1" + (f"\nSTATUS={status}" if status else ""))

    def stop(self) -> None:
        """Ask for the end, as a signal does."""
        self.stopping.set()


Body = Callable[[Service], Awaitable[None]]


def run(name: str, body: Body, *, level: int | str = logging.INFO) -> int:
    """Run the body to its end in an event loop of its own; return the process's exit code.

    0 when the body returned; 1 when it raised (logged; a SeraiError as one line); 130 when it was cancelled by a
    second signal.
    """
    set_up_logging(level)
    return asyncio.run(_run(name, body))


async def _run(name: str, body: Body) -> int:
    service = Service(name)
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(body(service))

    def on_signal(number: signal.Signals) -> None:
        if service.stopping.is_set():
            log.warning("%s again: %s ends now", number.name, name)
            task.cancel()
            return
        log.info("%s: %s stops", number.name, name)
        notify("STOPPING=1")
        service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        return 130
    except SeraiError as error:
        log.error("%s failed: %s", name, error)
        return 1
    except Exception as error:
        log.critical("%s failed: %s", name, error, exc_info=error)
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0
