"""Network and mount namespaces, by name.

Network namespaces are files in /run/netns, as `ip netns` makes them. A mount namespace is kept by a bind mount of its
nsfs file, so that it lives without any process and survives the kill -9 of all of them. A program is put into both
with `nsenter`: `ip netns exec` would give it yet another mount namespace.

`in_netns` runs a short function inside a namespace, in a thread that is thrown away afterwards: setns changes the
calling thread only, and a pooled thread would carry the namespace to strangers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil

from serai.lib.process import run
from serai.schema.errors import HostError, NotFoundError

T = TypeVar("T")

NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def netns_path(name: str) -> Path:
    """Where a named network namespace is."""
    return NETNS / name


def exists(name: str) -> bool:
    """Whether there is such a network namespace."""
    return netns_path(name).exists()


def names(prefix: str = "") -> list[str]:
    """Names of network namespaces that begin with `prefix`."""
    if not NETNS.is_dir():
        return []
    return sorted(path.name for path in NETNS.iterdir() if path.name.startswith(prefix))


async def create(name: str, *, env: Mapping[str, str] | None = None) -> None:
    """Create a network namespace with its loopback up and bridged traffic free of iptables.

    `env` is the environment of the program that makes it: it runs on for a moment where its caller was killed.
    """
    await run(["ip", "netns", "add", name], env=env)
    await in_netns(name, _settle)


def _settle() -> None:
    free_bridges()
    from serai.lib import netlink

    netlink.set_link_sync("lo", up=True)


def filtered_bridges() -> list[str]:
    """Which of iptables, ip6tables, arptables see bridged frames in the calling thread's namespace (br_netfilter)."""
    found = {path.name.rpartition("-")[2]: path for path in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*")}
    return sorted(name for name, path in found.items() if path.read_text(encoding="ascii").strip() != "0")


def free_bridges() -> None:
    """Keep bridged frames from iptables in the calling thread's namespace: a drop policy of its own would kill them.

    Every new namespace begins with all three on, where the kernel has br_netfilter.
    """
    for name in filtered_bridges():
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("0", encoding="ascii")


async def delete(name: str) -> None:
    """Delete a network namespace; one that is gone is deleted already. Its links go once its last process has."""
    if exists(name):
        await run(["ip", "netns", "delete", name])


def enter(path: Path | str) -> None:
    """Move the calling thread, and no other, into a network namespace."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise HostError(f"cannot enter the network namespace {path}: {os.strerror(code)}")
    finally:
        os.close(fd)


async def in_netns(name: str, function: Callable[[], T]) -> T:
    """Run a short blocking function inside a network namespace and return what it returns. Raises what it raises."""
    if not exists(name):
        raise NotFoundError("there is no such network namespace", field="namespace", value=name)
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type] # result is a T whenever there is no error

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            enter(netns_path(name))
            result = function()
        except BaseException as caught:  # noqa: BLE001 - handed to the caller as it is
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop may be closed: then nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=work, name=f"netns-{name}", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(outcome)
    finally:
        if outcome.done():
            thread.join()


def enter_argv(netns: str | None, mntns: Path | None = None) -> list[str]:
    """The argv prefix that runs a program inside both namespaces; it execs in place, so the pid stays."""
    argv = ["nsenter"]
    if netns is not None:
        argv.append(f"--net={netns_path(netns)}")
    if mntns is not None:
        argv.append(f"--mount={mntns}")
    return [*argv, "--"] if len(argv) > 1 else []


def processes_in(name: str) -> list[int]:
    """Pids of the processes whose network namespace is this one."""
    try:
        wanted = netns_path(name).stat()
    except FileNotFoundError:
        return []
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), wanted):
                found.append(pid)
    return found
