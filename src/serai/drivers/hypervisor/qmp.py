"""One QMP connection, by qemu.qmp, set up so that nothing stands between QEMU and us in a migration's blackout.

Of qemu.qmp four things are changed, all through what it offers for that: its log hooks (they print every message as
indented JSON, wanted or not), its default listener (it would keep every event for ever), a listener of our own that
hands an event on from the reader itself, where the library's would put it into a queue, and a second greeting is let
pass: QEMU says it twice to who is connected before its monitor is, if two of its threads notice at once.

A QEMU that does not answer is not dead: its target may be frozen, or the machine busy. UnavailableError says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
)
from qemu.qmp.protocol import StateError

from serai.drivers.hypervisor.base import MachineEvent, QmpError
from serai.lib.timeouts import time_limit
from serai.schema.errors import UnavailableError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds for greeting and negotiation. A QEMU that is still starting answers late, not never."""
COMMAND_TIMEOUT = 10.0
CLOSE_TIMEOUT = 3.0

# The library reports each lost connection as an error of its own; we say it in the errors that callers get.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class _Client(QMPClient):
    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def _do_recv(self) -> Message:
        msg: Message = await super()._do_recv()
        while self.greeting is not None and "QMP" in msg:
            msg = await super()._do_recv()
        return msg


class _Relay(EventListener):
    """Hands each event on as it is read."""

    def __init__(self, handler: Callable[[MachineEvent], None]) -> None:
        super().__init__()
        self._handler = handler

    async def put(self, event: Message) -> None:
        at = time.monotonic()
        data = event.get("data")
        self._handler(MachineEvent(str(event["event"]), data if isinstance(data, dict) else {}, at))


class Qmp:
    """A connection to one QEMU. `handler` gets each event, at once; it must not raise."""

    def __init__(self, vm: str, path: Path, handler: Callable[[MachineEvent], None]) -> None:
        self._vm = vm
        self._path = path
        self._handler = handler
        self._client = self._new_client()
        self._passing = asyncio.Lock()

    def _new_client(self) -> _Client:
        client = _Client(self._vm)
        client.events.names.add("(none: events are relayed)")
        client.register_listener(_Relay(self._handler))
        return client

    async def connect(self) -> None:
        """Connect and negotiate. Raises UnavailableError."""
        timeout = CONNECT_TIMEOUT
        try:
            async with time_limit(timeout):
                await self._client.connect(str(self._path))
        except TimeoutError:
            raise UnavailableError(
                f"QEMU of VM {self._vm} did not answer on its control socket within {timeout:g} s",
                remedy="This does not mean that the VM is dead: look at its storage and at the machine's load.",
            ) from None
        except ConnectError as error:
            raise UnavailableError(f"QEMU of VM {self._vm} cannot be reached on its control socket: {error}") from error

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = COMMAND_TIMEOUT
    ) -> Any:
        """Ask one command. Raises QmpError (QEMU said no) and UnavailableError (no answer within `timeout` seconds)."""
        try:
            async with time_limit(timeout):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise QmpError(command, str(error.error_class), str(error)) from error
        except TimeoutError:
            raise UnavailableError(
                f"QEMU of VM {self._vm} did not answer {command} within {timeout:g} s",
                remedy="This does not mean that the VM is dead: look at its storage and at the machine's load.",
            ) from None
        except (ExecInterruptedError, StateError) as error:
            raise UnavailableError(f"the connection to QEMU of VM {self._vm} is lost ({command})") from error

    async def execute_with_fd(self, descriptor: int, command: str, arguments: Mapping[str, object]) -> Any:
        """Ask a command that takes a descriptor (`getfd`, `add-fd`); ours stays open."""
        async with self._passing:
            try:
                self._client.send_fd_scm(descriptor)
            except (StateError, OSError) as error:
                raise UnavailableError(f"no descriptor can be passed to QEMU of VM {self._vm}: {error}") from error
            return await self.execute(command, arguments)

    async def drained(self) -> None:
        """Return once the connection has ended by itself and all events that came before its end were handed on."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Drop the connection; nothing happens to QEMU."""
        # What ended the connection earlier (EOF, mostly) is raised here, and is no news.
        with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
            async with time_limit(CLOSE_TIMEOUT):
                await self._client.disconnect()
