"""The only door to other programs.

`run` waits for a short-lived program and returns what it said; `spawn` starts one that lives on, in a session of its
own, so that it outlives us unless we end it. A process is held by a pidfd, never by its bare number, so that no signal
can reach another process that reused the number. `adopt` takes a process that someone else started. `become` gives this
very process to another program, and `detach` turns it into a daemon.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import pwd
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from serai.lib.timeouts import time_limit
from serai.schema.errors import HostError, UnsupportedError

log = logging.getLogger(__name__)

STDERR_TAIL = 2000
"""Characters of a program's last words that go into an error."""

Output = Path | int | None
"""Where output goes: a file (appended), an open descriptor, or None for nowhere."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that is over."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


def owner(user: str | None) -> tuple[int, int]:
    """User and group number; None: our own. Raises HostError if there is no such user."""
    if user is None:
        return os.getuid(), os.getgid()
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise HostError(f"there is no system user {user}", remedy="Run the set-up; it makes the user.") from None
    return entry.pw_uid, entry.pw_gid


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take: `memory` (its data) and `file_size` in bytes, `cpu` in seconds of processor time."""

    memory: int
    cpu: int
    file_size: int

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The program within its limits; it is executed in place, so the pid stays. Raises ProgramMissingError."""
        program = shutil.which(argv[0])
        if program is None:
            raise _missing(argv)
        sizes = [f"--data={self.memory}", f"--cpu={self.cpu}", f"--fsize={self.file_size}", "--core=0"]
        return ["prlimit", *sizes, "--", program, *argv[1:]]


class ProcessError(HostError):
    """A program failed; `returncode` is negative for a signal, None if it was stopped for taking too long."""

    def __init__(self, argv: Sequence[str], returncode: int | None, stderr: bytes, reason: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr.decode(errors="replace")[-STDERR_TAIL:].strip()
        # The program's name only: arguments may hold secrets, and this text travels to users and logs.
        super().__init__(f"{Path(argv[0]).name} {reason}" + (f": {self.stderr}" if self.stderr else ""))


class ProcessTimeout(ProcessError):  # noqa: N818 - as in subprocess
    """A program took too long and was killed, with all of its process group."""


class ProgramMissingError(UnsupportedError):
    """The program is not installed."""


def _missing(argv: Sequence[str], package: str = "") -> ProgramMissingError:
    return ProgramMissingError(
        f"{argv[0]} is not installed or cannot be executed",
        field="program",
        value=argv[0],
        remedy=f"Install {package}." if package else "Install its package; 'serai doctor' names it.",
    )


def _outcome(argv: Sequence[str], code: int, stdout: bytes, stderr: bytes, *, check: bool) -> Completed:
    if check and code != 0:
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"failed with code {code}"
        raise ProcessError(argv, code, stderr or stdout, how)
    return Completed(tuple(argv), code, stdout, stderr)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def run(
    argv: Sequence[str],
    *,
    input: bytes | None = None,  # noqa: A002 - the name that subprocess gives it
    timeout: float = 60,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    user: str | None = None,
    limits: Limits | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end; `timeout` in seconds, `env` replaces the environment.

    With `user` it runs as that user and its group, without supplementary groups.

    Raises ProcessError (with `check`, on any code but 0), ProcessTimeout, ProgramMissingError. On time-out and on
    cancellation the program's whole process group is killed before the exception leaves.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *(argv if limits is None else limits.argv(argv)),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd=cwd,
            user=user,
            group=None if user is None else owner(user)[1],
            extra_groups=None if user is None else (),
            pass_fds=pass_fds,
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # It may run already: asyncio would kill the program alone, and not its group.
        with contextlib.suppress(OSError):
            await _kill_group(await starting)
        raise
    except (FileNotFoundError, PermissionError) as error:
        if cwd is not None and not Path(cwd).is_dir():
            raise
        raise _missing(argv) from error
    try:
        async with time_limit(timeout):
            stdout, stderr = await process.communicate(input)
    except TimeoutError:
        await _kill_group(process)
        raise ProcessTimeout(argv, None, b"", f"took longer than {timeout:g} s and was killed") from None
    except BaseException:
        await _kill_group(process)
        raise
    code = process.returncode
    if code is None:
        raise RuntimeError("a process that was awaited has no return code")
    return _outcome(argv, code, stdout, stderr, check=check)


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Drains the pipes too; without that their transports would be left to the garbage collector.
    await asyncio.shield(asyncio.ensure_future(process.communicate()))


def run_sync(argv: Sequence[str], *, input: bytes = b"", timeout: float = 60, check: bool = True) -> Completed:  # noqa: A002
    """`run` for callers without an event loop; the same errors. At the time-out the program alone is killed."""
    try:
        done = subprocess.run(
            argv, input=input, capture_output=True, timeout=timeout, check=False, start_new_session=True
        )
    except (FileNotFoundError, PermissionError) as error:
        raise _missing(argv) from error
    except subprocess.TimeoutExpired:
        raise ProcessTimeout(argv, None, b"", f"took longer than {timeout:g} s and was killed") from None
    return _outcome(argv, done.returncode, done.stdout, done.stderr, check=check)


class Watched:
    """A process held by its pidfd; the descriptor is open for as long as this object lives."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    def __del__(self) -> None:
        # Only here: a number closed earlier could be reused under a caller who still holds it.
        os.close(self.pidfd)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pid {self.pid}>"

    @property
    def alive(self) -> bool:
        """False once the process is over (reaped or not)."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, 0)
            return not _readable(self.pidfd)
        return False

    async def exited(self) -> None:
        """Return when the process is over; any number of callers may wait."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        # A descriptor of its own for each waiter: a loop watches a descriptor for one reader only.
        own = os.dup(self.pidfd)
        loop.add_reader(own, _settle, over)
        try:
            await over
        finally:
            loop.remove_reader(own)
            os.close(own)

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process is over."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    async def terminate(self, timeout: float = 10) -> None:
        """SIGTERM, and SIGKILL if it is not over within `timeout` seconds; return when it is over."""
        self.send_signal(signal.SIGTERM)
        try:
            async with time_limit(timeout):
                await self.exited()
        except TimeoutError:
            log.warning("process %d ignored SIGTERM for %g s: killing it", self.pid, timeout)
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL; return when the process is over."""
        self.send_signal(signal.SIGKILL)
        await self.exited()


class Child(Watched):
    """A process that we started; whoever holds it reaps it by `wait` (or `terminate`, `kill`)."""

    def __init__(self, pid: int, pidfd: int) -> None:
        super().__init__(pid, pidfd)
        self.returncode: int | None = None

    async def exited(self) -> None:
        """Return when the process is over, and reap it."""
        if self.returncode is None:
            await super().exited()
            self._reap()

    async def wait(self) -> int:
        """Return the exit code once the process is over; negative: the signal that ended it."""
        await self.exited()
        if self.returncode is None:
            raise RuntimeError(f"process {self.pid} is over and has no return code")
        return self.returncode

    def _reap(self) -> None:
        if self.returncode is not None:
            return
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        if result is None:
            raise RuntimeError(f"process {self.pid} is over and cannot be reaped")
        self.returncode = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


async def spawn(
    argv: Sequence[str],
    *,
    user: str | int | None = None,
    group: str | int | None = None,
    extra_groups: Sequence[str | int] | None = None,
    pass_fds: Sequence[int] = (),
    stdout: Output = None,
    stderr: Output = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    umask: int = -1,
    descriptors: int = 0,
    limits: Limits | None = None,
) -> Child:
    """Start a program and return as soon as it runs, that is, after exec.

    It gets room for so many `descriptors` at once: the kernel doubles a process's table when it is full, and holds a
    process of several threads for an RCU grace period each time, 10 to 20 ms on a busy machine.

    With `user` and no `extra_groups` it has no supplementary groups: it must not keep root's. Descriptors in
    `pass_fds` keep their numbers; all others are closed. Raises ProgramMissingError, OSError.
    """
    if user is not None and extra_groups is None:
        extra_groups = ()
    with contextlib.ExitStack() as files:
        _make_room(descriptors, files)
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - fork and exec take a millisecond; a thread could not be cancelled
                argv if limits is None else limits.argv(argv),
                stdin=subprocess.DEVNULL,
                stdout=_open(stdout, files),
                stderr=_open(stderr, files),
                user=user,
                group=group,
                extra_groups=extra_groups,
                pass_fds=pass_fds,
                start_new_session=True,
                env=env,
                cwd=cwd,
                umask=umask,
            )
        except (FileNotFoundError, PermissionError) as error:
            if cwd is not None and not Path(cwd).is_dir():
                raise
            raise _missing(argv) from error
    pidfd = os.pidfd_open(process.pid)
    # From here on the pidfd is the handle. This keeps Popen's own bookkeeping from reaping the process behind it.
    process.returncode = 0
    return Child(process.pid, pidfd)


def _make_room(descriptors: int, files: contextlib.ExitStack) -> None:
    """A child's table is as large as the highest descriptor of its parent asks for, and stays so after exec."""
    if descriptors:
        with open(os.devnull, "rb") as file:
            files.callback(os.close, fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, descriptors - 1))


def _open(output: Output, files: contextlib.ExitStack) -> int:
    if output is None:
        return subprocess.DEVNULL
    if isinstance(output, int):
        return output
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    files.callback(os.close, descriptor)
    return descriptor


def become(argv: Sequence[str], *, package: str) -> NoReturn:
    """Hand this process over to a program for good: its terminal, its descriptors and its exit code.

    `package` is what to install where the program is missing. Raises ProgramMissingError.
    """
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - to become it is the point: no shell is meant
    except (FileNotFoundError, PermissionError) as error:
        raise _missing(argv, package) from error


def detach() -> None:
    """Continue as a daemon, in a session of its own and in no folder; our parent sees us exit with 0 here.

    For a process without threads, event loop or anything that must be cleaned up: the rest of it is forked.
    """
    os.chdir("/")
    if os.fork() != 0:
        os._exit(0)
    os.setsid()


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone, or a zombie.

    Number and start time together name a process for good. psutil counts from the epoch instead, by a boot time that
    moves whenever the clock is set.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def adopt(pid: int, *, expect: str) -> Watched | None:
    """Hold a process that an earlier run of ours started; None if it is gone.

    `expect` must be part of one of its arguments (a VM's id, say): else another process has reused the number, and
    the result is None as well.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    watched = Watched(pid, pidfd)
    try:
        # Read after the pidfd was opened, and checked alive after that: so both are the same process.
        arguments = _arguments(watched)
    except psutil.Error:
        return None
    return watched if watched.alive and any(expect in argument for argument in arguments) else None


def _arguments(watched: Watched) -> list[str]:
    # Within its exec a process has no arguments for a moment.
    for _ in range(100):
        arguments = psutil.Process(watched.pid).cmdline()
        if arguments or not watched.alive:
            return arguments
        time.sleep(0.001)
    return []
