"""A program on a terminal of its own, as a person sits before it: what it shows, and keys typed.

The terminal is the program's controlling one, so that a typed Ctrl-C is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import time
from collections.abc import Sequence
from typing import Self

from tests.support.looking import PATIENCE

CTRL_C = "\x03"
LEAVE = "\x1d"
"""Ctrl-], which leaves a console."""


class Terminal:
    """`async with Terminal(argv) as terminal`; the program is killed at the end if it is not over."""

    def __init__(self, argv: Sequence[str]) -> None:
        # A program that leads no process group makes a session of its own without a fork: the pid stays.
        self._argv = ["setsid", "--ctty", *argv]
        self.seen = ""
        self._looked = 0
        self._over = False
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._master, slave = pty.openpty()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"}
            )
        except BaseException:
            os.close(self._master)
            raise
        finally:
            os.close(slave)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._close()
        os.close(self._master)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except OSError:
            data = b""  # A terminal whose last user has gone answers EIO.
        self.seen += data.decode(errors="replace")
        if not data:
            self._close()
        self._more.set()

    def _close(self) -> None:
        if not self._over:
            asyncio.get_running_loop().remove_reader(self._master)
        self._over = True

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    @property
    def fresh(self) -> str:
        """What was shown after what was waited for."""
        return self.seen[self._looked :]

    async def until(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait until the pattern was shown, after what was waited for before."""
        try:
            async with asyncio.timeout(timeout):
                while (found := re.search(pattern, self.fresh)) is None:
                    assert not self._over, f"ended without {pattern!r}: {self.seen!r}"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"never saw {pattern!r}: {self.seen!r}") from None
        self._looked += found.end()
        return found

    async def ended(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; the exit code, once all that it showed was read."""
        async with asyncio.timeout(timeout):
            code = await self._process.wait()
            while not self._over:
                self._more.clear()
                await self._more.wait()
        return code


class Shell:
    """The shell on a tiny guest's serial console, by `serai vm console`; leaves it by Ctrl-] at the end."""

    def __init__(self, serai: Sequence[str], vm: str) -> None:
        self.terminal = Terminal([*serai, "vm", "console", vm])
        self._vm = vm

    @classmethod
    def on(cls, terminal: Terminal, vm: str) -> Self:
        """On a terminal whose owner ends it; `ready` first."""
        shell = cls([], vm)
        shell.terminal = terminal
        return shell

    async def ready(self) -> None:
        """The program has joined, and the shell shows its prompt."""
        await self.terminal.until(f"Console of {self._vm}. Leave it with Ctrl-\\]")
        await self.prompt()

    async def __aenter__(self) -> Self:
        await self.terminal.__aenter__()
        try:
            await self.ready()
        except BaseException:
            await self.terminal.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            self.terminal.type(LEAVE)
            assert await self.terminal.ended() == 0, self.terminal.seen
        finally:
            await self.terminal.__aexit__()

    async def prompt(self) -> None:
        """Press Enter until the shell shows its prompt: what is typed before it reads again may be lost."""
        deadline = time.monotonic() + PATIENCE
        while "# " not in self.terminal.fresh:
            assert time.monotonic() < deadline, self.terminal.seen
            self.terminal.type("\n")
            await asyncio.sleep(0.2)
        await self.terminal.until("# ")

    async def ask(self, command: str) -> str:
        """What a command answers, its lines joined by blanks."""
        # The quotation marks keep the echo of the line apart from what is looked for.
        self.terminal.type(f'echo "<""$(echo $({command}))"">"\n')
        return (await self.terminal.until(r"<([^<>\"]*)>")).group(1)

    async def until(self, command: str, wanted: str) -> None:
        """Ask again until the command answers so."""
        answer = None
        try:
            async with asyncio.timeout(PATIENCE):
                while (answer := await self.ask(command)) != wanted:
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"{command} says {answer!r}, not {wanted!r}") from None
