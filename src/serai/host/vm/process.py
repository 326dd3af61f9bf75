"""A VM's QEMU process on this host: attached once it was started or adopted, watched until it ends, or is ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serai.core.lifecycle import End, classify_end
from serai.drivers.hypervisor.base import Machine, MachineEvent
from serai.lib.tasks import Tasks, first_of
from serai.lib.timeouts import time_limit
from serai.schema.errors import SeraiError

log = logging.getLogger(__name__)

PRESS_AGAIN = 5.0
"""Seconds between two presses of the power button of a guest that is to shut down."""


class QemuProcess:
    """`on_event` gets QMP's events; `on_end` is called once for each process, after `gone` was set."""

    def __init__(self, tasks: Tasks, on_event: Callable[[MachineEvent], None], on_end: Callable[[End], None]) -> None:
        self._tasks = tasks
        self._on_event = on_event
        self._on_end = on_end
        self._machine: Machine | None = None
        self.gone = asyncio.Event()
        """Set while there is no process."""
        self.gone.set()
        self.asked_to_end = False
        """Serai itself wants the present process, or wanted the last one, to end."""
        self.last_end: End | None = None

    @property
    def machine(self) -> Machine | None:
        """The running process; none while there is none."""
        return None if self.gone.is_set() else self._machine

    def attach(self, machine: Machine) -> None:
        """Watch this process from now on."""
        self._machine = machine
        self.gone.clear()
        self.asked_to_end = False
        machine.subscribe(self._on_event)
        self._tasks.start(self._watch(machine))

    async def _watch(self, machine: Machine) -> None:
        info = await machine.ended()
        await machine.close()
        self.gone.set()
        self.last_end = classify_end(
            code=info.code,
            signal=info.signal,
            shutdown=info.shutdown,
            asked=self.asked_to_end,
            log_tail=info.log_tail,
        )
        self._on_end(self.last_end)

    async def shut_down(self, name: str, forced: asyncio.Event, timeout: float, *, resume: bool) -> None:
        """Press the power button until the process or `forced` ends the waiting; give up after `timeout` seconds.

        `resume`: a paused guest has to run to shut down.
        """
        try:
            async with time_limit(timeout):
                if resume and self.machine is not None:
                    await self.machine.cont()
                while self.machine is not None and not forced.is_set():
                    # A guest that is still booting misses the button, so it is pressed again and again.
                    await self.machine.powerdown()
                    await first_of(self.gone.wait(), forced.wait(), timeout=PRESS_AGAIN)
        except TimeoutError:
            log.info("vm %s did not shut down within %g s: ending it by force", name, timeout)
        except SeraiError as error:
            log.info("vm %s cannot be asked to shut down (%s): ending it by force", name, error)

    async def quit(self, timeout: float) -> None:
        """End the process, its disks flushed; by force after `timeout` seconds. Returns when it is gone."""
        self.asked_to_end = True
        if self.machine is not None:
            await self.machine.quit(timeout)
            await self.gone.wait()

    async def kill(self) -> None:
        """End the process by SIGKILL. Returns when it is gone."""
        if self.machine is not None:
            self.asked_to_end = True
            await self.machine.kill()
            await self.gone.wait()
