"""The bare baseline: the same migration by a short QMP script, with nothing of Serai in its way.

It takes the command line of a QEMU that Serai started and runs the same one by hand at both ends: same guest, links,
kind of disk (a volume of its own behind a tgtd of its own, CHAP, libiscsi), TLS on the stream, capabilities and `-S`.
Then it does what has to be done and no more: prepare the destination, migrate, continue, `cont` over there, quit here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serai.drivers.storage.tgt_socket import TgtSocket
from serai.lib.pki import qemu_identity

TGT_PORT = 3261
CAPABILITIES = {"events": True, "pause-before-switchover": True, "return-path": False, "auto-converge": False}
WITH_TAP = str(Path(__file__).with_name("with_tap.py"))
TARGET = "iqn.2026-01.bench:bare"
INITIATOR = "iqn.2026-01.bench:qemu"
USER = "bare"


class Qmp:
    """A blocking QMP connection: one command at a time, events kept in order."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        self._socket.settimeout(timeout)
        self._file = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._read()
        self.run("qmp_capabilities")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise ConnectionError("QEMU closed its QMP socket")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, command: str, **arguments: Any) -> Any:
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps(message).encode())
        while True:
            answer = self._read()
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            else:
                return answer.get("return")

    def wait_migration(self, *statuses: str) -> str:
        """The next MIGRATION status among these."""
        while True:
            event = self._events.pop(0) if self._events else self._read()
            if event.get("event") == "MIGRATION" and event["data"]["status"] in (*statuses, "failed"):
                return str(event["data"]["status"])


@dataclass(frozen=True)
class Node:
    """One lab host: its name, how to get in (an argv prefix), its migration address, the certificate of its QEMUs."""

    name: str
    enter: tuple[str, ...]
    address: str
    tls_dir: str = "/var/lib/serai/pki/qemu"


@dataclass
class Running:
    """One QEMU by hand."""

    node: Node
    process: subprocess.Popen[bytes]
    qmp: Qmp
    folder: Path
    harness_s: float
    """What the way to QEMU's exec took: namespaces, an interpreter, the tap. Not the migration's, so not counted."""


@dataclass
class Bare:
    """A VM without Serai: `template` is the argv that Serai gave its own."""

    template: Sequence[str]
    nodes: dict[str, Node]
    storage: Node
    folder: Path
    address: str
    mac: str = "52:54:00:ba:4e:01"
    running: Running | None = None
    _tgtd: subprocess.Popen[bytes] | None = None
    _secret: str = field(default_factory=lambda: secrets.token_hex(8))
    _count: int = 0

    def start(self, node: str) -> None:
        """Bring the disk up and start the guest on a node."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        os.chmod(self.folder, 0o711)
        self._target()
        self.running = self._qemu(self.nodes[node], incoming=False)
        self.running.qmp.run("cont")

    def again(self, node: str) -> float:
        """End it, and start it once more; seconds from QEMU's exec until it answered `cont`."""
        if self.running is not None:
            _end(self.running)
            self.running = None
        began = time.monotonic()
        self.running = self._qemu(self.nodes[node], incoming=False)
        self.running.qmp.run("cont")
        return time.monotonic() - began - self.running.harness_s

    def stop(self) -> None:
        """End what was started; harmless when repeated."""
        if self.running is not None:
            _end(self.running)
            self.running = None
        if self._tgtd is not None:
            self._tgtd.kill()
            self._tgtd.wait()
            self._tgtd = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _target(self) -> None:
        disk = self.folder / "disk.raw"
        with disk.open("wb") as file:
            file.truncate(64 << 20)
        portal = f"portal={self.storage.address}:{TGT_PORT}"
        self._tgtd = subprocess.Popen(
            [*self.storage.enter, "tgtd", "-f", "--nr_iothreads", "1", "--iscsi", portal],
            env={**os.environ, "TGT_IPC_SOCKET": str(self.folder / "tgt")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        asyncio.run(self._export(self._tgtd, disk))

    async def _export(self, tgtd: subprocess.Popen[bytes], disk: Path) -> None:
        """Put the disk behind the target. Serai's own client does it, long before anything is measured: tgtadm would
        take the password as an argument, for all to see."""
        control = TgtSocket(self.folder / "tgt.0")
        deadline = time.monotonic() + 10
        while await control.peer() is None:
            if tgtd.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the bare run's tgtd did not start at {self.storage.address}:{TGT_PORT}")
            await asyncio.sleep(0.02)
        await control.new_target(1, TARGET)
        await control.new_lun(1, 1, disk, "bare")
        await control.new_account(USER, self._secret)
        await control.bind_account(1, USER)
        await control.bind_initiator(1, INITIATOR)

    def _secret_file(self, folder: Path) -> Path:
        """The CHAP password for one QEMU, its user's alone to read."""
        file = folder / "chap"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as secret:
            secret.write(self._secret)
        shutil.chown(file, "serai-qemu", "serai-qemu")
        return file

    def _qemu(self, node: Node, *, incoming: bool) -> Running:
        self._count += 1
        folder = self.folder / f"q{self._count}"
        folder.mkdir(mode=0o711)
        shutil.chown(folder, "serai-qemu", "serai-qemu")
        secret = self._secret_file(folder)
        tap = f"bare{self._count % 100}"
        argv = _bare_argv(self.template, folder, secret, self)
        if incoming:
            argv += ["-incoming", "defer"]
        stamp = folder / "exec"
        wrap = [sys.executable, WITH_TAP, str(stamp), tap, f"fe:54:00:ba:4e:{self._count % 256:02x}", "br-lan"]
        drop = ["setpriv", "--reuid", "serai-qemu", "--regid", "serai-qemu", "--clear-groups", "--"]
        began = time.monotonic()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*node.enter, *wrap, *drop, *argv], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            qmp = Qmp(folder / "qmp.sock")
            harness_s = float(stamp.read_text(encoding="ascii")) - began
            return Running(node, process, qmp, folder, harness_s)
        except OSError as error:
            process.kill()
            process.wait()
            raise RuntimeError(f"QEMU did not start: {(folder / 'log').read_text()}") from error

    def migrate(self, to: str, downtime_limit_ms: int = 20) -> dict[str, Any]:
        """Move the guest; returns total_s and QEMU's downtime in ms.

        The total is from nothing prepared to running there, without `harness_s`.
        """
        source = self.running
        if source is None:
            raise RuntimeError("nothing runs")
        began = time.monotonic()
        destination = self._qemu(self.nodes[to], incoming=True)
        try:
            return self._move(source, destination, began, downtime_limit_ms)
        finally:
            # Whichever of them does not run the guest now.
            _end(source if self.running is destination else destination)

    def _move(self, source: Running, destination: Running, began: float, downtime_limit_ms: int) -> dict[str, Any]:
        _parameters(destination, "server", None, downtime_limit_ms)
        destination.qmp.run("migrate-incoming", uri=f"tcp:{destination.node.address}:0")
        (where,) = destination.qmp.run("query-migrate")["socket-address"]
        _parameters(source, "client", qemu_identity(destination.node.name), downtime_limit_ms)
        source.qmp.run("migrate", uri=f"tcp:{destination.node.address}:{where['port']}")
        if source.qmp.wait_migration("pre-switchover") != "pre-switchover":
            raise RuntimeError(f"the bare migration failed: {source.qmp.run('query-migrate')}")
        source.qmp.run("migrate-continue", state="pre-switchover")
        if destination.qmp.wait_migration("completed") != "completed":
            raise RuntimeError("the bare migration failed at its destination")
        loaded = time.monotonic()
        destination.qmp.run("cont")
        total = time.monotonic() - began - destination.harness_s
        self.running = destination
        source.qmp.wait_migration("completed")
        return {
            "total_s": round(total, 4),
            "harness_s": round(destination.harness_s, 4),
            "downtime_ms": source.qmp.run("query-migrate").get("downtime", 0),
            "cont_ms": round((began + destination.harness_s + total - loaded) * 1000, 1),
        }


def _parameters(running: Running, endpoint: str, peer: str | None, downtime_limit_ms: int) -> None:
    wanted = [{"capability": name, "state": state} for name, state in CAPABILITIES.items()]
    running.qmp.run("migrate-set-capabilities", capabilities=wanted)
    with contextlib.suppress(RuntimeError):
        running.qmp.run("object-del", id="bare-tls")
    creds = {"qom-type": "tls-creds-x509", "id": "bare-tls", "dir": running.node.tls_dir, "endpoint": endpoint}
    running.qmp.run("object-add", **creds, verify_peer=True)
    running.qmp.run(
        "migrate-set-parameters",
        max_bandwidth=1 << 40,
        downtime_limit=downtime_limit_ms,
        tls_creds="bare-tls",
        tls_hostname=peer or "",
    )


def _end(running: Running) -> None:
    with contextlib.suppress(OSError, RuntimeError, ConnectionError):
        running.qmp.run("quit")
    running.qmp.close()
    try:
        running.process.wait(5)
    except subprocess.TimeoutExpired:
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()


def _bare_argv(template: Sequence[str], folder: Path, secret: Path, bare: Bare) -> list[str]:
    """Serai's own command line with sockets, tap, disk, name and addresses of ours."""
    argv = []
    for word in template:
        changed = re.sub(r"^socket,id=(qmp|console|qga),fd=\d+,", rf"socket,id=\1,path={folder}/\1.sock,", word)
        changed = re.sub(r"^guest=[^,]+", "guest=bare", changed)
        changed = re.sub(r"^(secret,id=[^,]+),file=.*", rf"\1,file={secret}", changed)
        changed = re.sub(r"^tap,id=net0,fd=\d+", "tap,id=net0,fd=3", changed)
        changed = re.sub(r"mac=[0-9a-f:]{17}", f"mac={bare.mac}", changed)
        changed = re.sub(r"serai\.ip=[0-9.]+", f"serai.ip={bare.address}", changed)
        if changed.startswith('{"driver":"iscsi"'):
            node = json.loads(changed)
            node |= {
                "portal": f"{bare.storage.address}:{TGT_PORT}",
                "target": TARGET,
                "lun": 1,
                "initiator-name": INITIATOR,
                "user": USER,
            }
            changed = json.dumps(node)
        argv.append(changed)
    if "-uuid" in argv:
        argv[argv.index("-uuid") + 1] = "00000000-0000-4000-8000-0000000000ba"
    if "-incoming" in argv:  # the template's own QEMU was the destination of a move
        place = argv.index("-incoming")
        del argv[place : place + 2]
    if "-S" not in argv:
        argv.append("-S")
    return argv
