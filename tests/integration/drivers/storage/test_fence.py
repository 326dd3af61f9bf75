"""Sessions with a real tgtd: who is fenced, from what moment on, and who must not notice anything."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import signal
import socket
import struct
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.support.initiator import check_access, qemu_io, qemu_io_argv
from tests.support.iscsi import SIZE, VM, VOLUME, Host, epoch

from serai.drivers.storage.iscsi import TgtExporter
from serai.schema.errors import UnavailableError
from serai.schema.launch import IscsiDisk

DEADLINE = 30


class LiveSession:
    """An initiator that stays connected: an interactive qemu-io, as a VM's QEMU would be."""

    def __init__(self, disk: IscsiDisk, folder: Path) -> None:
        self._secret = folder / f"secret-{secrets.token_hex(4)}"
        self._secret.write_text(disk.password.get_secret_value())
        self._argv = qemu_io_argv(disk, str(self._secret))

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            await self.tell("read 0 512")
            await self.hear("read 512/512")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        await self._process.stdin.drain()

    async def hear(self, expected: str) -> None:
        assert self._process.stdout is not None
        heard = ""
        async with asyncio.timeout(DEADLINE):
            while expected not in heard:
                chunk = await self._process.stdout.read(4096)
                assert chunk, f"qemu-io ended: {heard}"
                heard += chunk.decode()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def ended_without(self, words: str) -> bool:
        """End it, and say whether it never said these words."""
        self._process.kill()
        said, _wrong = await self._process.communicate()
        return words.encode() not in said

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


def connections(host: Host, state: str) -> list[list[str]]:
    """The rows of /proc/net/tcp (proc(5)) with the portal in a state (01 established, 06 closed), from both ends."""
    portal = f"{int.from_bytes(socket.inet_aton(host.address), sys.byteorder):08X}:{host.port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return [row for row in rows if portal in row[1:3] and row[3] == state]


async def attempts_closed(host: Host, more: int) -> None:
    """Wait until that many more connections with the portal were opened and closed again: refused logins."""
    wanted = len(connections(host, "06")) + more
    async with asyncio.timeout(DEADLINE):
        while len(connections(host, "06")) < wanted:
            await asyncio.sleep(0.02)


async def frozen_with_a_full_socket(host: Host, session: LiveSession) -> None:
    """Freeze an initiator while so much is on its way to it that the target cannot send any more."""

    def unsent() -> int:
        rows = (row for row in connections(host, "01") if row[1].endswith(f":{host.port:04X}"))
        return max((int(row[4].split(":")[0], 16) for row in rows), default=0)

    async with asyncio.timeout(DEADLINE):
        while True:
            for _ in range(8):
                await session.tell("aio_read 0 8M")
            for _ in range(1000):
                if unsent() > 1 << 16:
                    break
                await asyncio.sleep(0)
            session.freeze()
            # Full is what stays the same, and far more than what the last of the reads would leave.
            seen = [0, unsent()]
            while seen[-1] != seen[-2]:
                await asyncio.sleep(0.05)
                seen.append(unsent())
            if seen[-1] > 1 << 20:
                return
            session.thaw()


async def test_a_refused_holder_is_fenced_at_once_and_the_new_one_is_not(
    host: Host, exporter: TgtExporter, tmp_path: Path
) -> None:
    await exporter.admit(VOLUME, epoch(1))
    async with LiveSession(host.disk(epoch(1)), tmp_path) as old:
        await old.tell("write -P 1 0 64k")
        await old.hear("wrote 65536/65536")
        await exporter.admit(VOLUME, epoch(2))
        async with LiveSession(host.disk(epoch(2)), tmp_path) as new:
            assert {session.initiator for session in await exporter.sessions(VOLUME)} == {
                epoch(1).initiator,
                epoch(2).initiator,
            }
            await exporter.refuse(VOLUME, VM, 1)
            assert [session.initiator for session in await exporter.sessions(VOLUME)] == [epoch(2).initiator]
            await old.tell("write -P 66 0 64k")
            await new.tell("write -P 2 64k 64k")
            await new.hear("wrote 65536/65536")
            # Another initiator of the old epoch, as a restarted one would be, learns that it is refused.
            with pytest.raises(UnavailableError, match="Target not found"):
                await check_access(host.disk(epoch(1)))
            await new.tell("read -P 1 0 64k")
            await new.hear("read 65536/65536")
            await attempts_closed(host, 1)
            assert await old.ended_without("wrote")
    assert host.volume.read_bytes()[:131072] == b"\1" * 65536 + b"\2" * 65536


async def test_a_frozen_holder_is_fenced_and_its_write_never_lands(
    host: Host, exporter: TgtExporter, tmp_path: Path
) -> None:
    await exporter.admit(VOLUME, epoch(1))
    async with LiveSession(host.disk(epoch(1)), tmp_path) as old:
        old.freeze()
        await old.tell("write -P 66 0 64k")
        await exporter.refuse(VOLUME, VM, 1)
        assert await exporter.sessions(VOLUME) == []
        await exporter.admit(VOLUME, epoch(2))
        async with LiveSession(host.disk(epoch(2)), tmp_path) as new:
            await new.tell("write -P 2 0 64k")
            await new.hear("wrote 65536/65536")
            old.thaw()
            await attempts_closed(host, 1)
            await new.tell("read -P 2 0 64k")
            await new.hear("read 65536/65536")
            assert await old.ended_without("wrote")


async def test_a_holder_with_a_full_socket_is_fenced(
    host: Host,
    exporter: TgtExporter,
    tmp_path: Path,
) -> None:
    """Frozen while its reads come in: its connection can neither be written to nor does it ever say anything."""
    await exporter.admit(VOLUME, epoch(1))
    await exporter.admit(VOLUME, epoch(2))
    async with (
        LiveSession(host.disk(epoch(1)), tmp_path) as old,
        LiveSession(host.disk(epoch(2)), tmp_path) as new,
    ):
        await frozen_with_a_full_socket(host, old)
        await exporter.refuse(VOLUME, VM, 1)
        assert epoch(1).initiator not in {session.initiator for session in await exporter.sessions(VOLUME)}
        await new.tell("write -P 2 0 64k")
        await new.hear("wrote 65536/65536")
        old.thaw()
        await old.tell("write -P 66 0 64k")
        await attempts_closed(host, 1)
        assert await old.ended_without("wrote")
    assert host.volume.read_bytes()[:65536] == b"\2" * 65536


async def test_a_busy_volume_can_be_unexported_and_its_holder_refused(
    host: Host, exporter: TgtExporter, tmp_path: Path
) -> None:
    for number in (1, 2):
        await exporter.admit(VOLUME, epoch(number))
    async with (
        LiveSession(host.disk(epoch(1)), tmp_path) as first,
        LiveSession(host.disk(epoch(2)), tmp_path) as second,
    ):
        for _ in range(40):
            await first.tell("aio_write -P 1 0 4M")
            await second.tell("aio_write -P 2 4M 4M")
        await exporter.refuse(VOLUME, VM, 1)
        assert [session.initiator for session in await exporter.sessions(VOLUME)] == [epoch(2).initiator]
        # What the refused one had in flight is over: nothing of it may land any more.
        os.pwrite(file := os.open(host.volume, os.O_WRONLY), bytes(4 << 20), 0)
        os.close(file)
        await exporter.unexport(VOLUME)
        assert await host.socket.targets() == []
        assert host.volume.read_bytes()[: 4 << 20] == bytes(4 << 20)


class HalfLogin:
    """An initiator of our own that stops in the middle of its login, after its secret was accepted (RFC 7143)."""

    def __init__(self, disk: IscsiDisk) -> None:
        self._disk = disk

    async def __aenter__(self) -> Self:
        address, port = self._disk.portal.split(":")
        self._reader, self._writer = await asyncio.open_connection(address, int(port))
        try:
            names = {"InitiatorName": self._disk.initiator, "TargetName": self._disk.target, "SessionType": "Normal"}
            await self._login(0x81, {**names, "AuthMethod": "CHAP"})
            _status, asked = await self._login(0x00, {"CHAP_A": "5"})
            secret = self._disk.password.get_secret_value().encode()
            challenge = bytes.fromhex(asked["CHAP_C"].removeprefix("0x"))
            answer = hashlib.md5(bytes([int(asked["CHAP_I"])]) + secret + challenge).hexdigest()
            status, _ = await self._login(0x81, {"CHAP_N": self._disk.user, "CHAP_R": f"0x{answer}"})
            assert status == 0
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def finish(self) -> bool:
        """Carry the login to its end; whether the session lives."""
        try:
            status, _ = await self._login(0x87, {})
            # A session that was closed right after says nothing more.
            return status == 0 and await self._reader.read(1) != b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return False

    async def _login(self, flags: int, keys: dict[str, str]) -> tuple[int, dict[str, str]]:
        data = b"".join(f"{key}={value}".encode() + b"\0" for key, value in keys.items())
        isid = b"\x80\0\0\0\0\1"
        header = struct.pack(">BBBBI", 0x43, flags, 0, 0, len(data)) + isid + bytes(2) + struct.pack(">I", 1)
        self._writer.write(header.ljust(48, b"\0") + data + bytes(-len(data) % 4))
        await self._writer.drain()
        async with asyncio.timeout(DEADLINE):
            answer = await self._reader.readexactly(48)
            length = int.from_bytes(answer[5:8])
            text = (await self._reader.readexactly(length + -length % 4))[:length]
        pairs = (pair.split("=", 1) for pair in text.decode().split("\0") if pair)
        return answer[36], dict(pairs)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def test_the_half_login_of_these_tests_can_end_in_a_session(host: Host, exporter: TgtExporter) -> None:
    await exporter.admit(VOLUME, epoch(1))
    async with HalfLogin(host.disk(epoch(1))) as login:
        finished = asyncio.create_task(login.finish())
        async with asyncio.timeout(DEADLINE):
            while not await exporter.sessions(VOLUME):
                await asyncio.sleep(0.01)
        await exporter.refuse(VOLUME, VM, 1)
        assert not await finished


async def test_a_login_that_ends_while_its_initiator_is_refused_is_closed(host: Host, exporter: TgtExporter) -> None:
    await exporter.admit(VOLUME, epoch(1))
    async with HalfLogin(host.disk(epoch(1))) as login:
        refusal = asyncio.create_task(exporter.refuse(VOLUME, VM, 1))
        async with asyncio.timeout(DEADLINE):
            while (await host.socket.targets())[0].initiators:
                await asyncio.sleep(0.01)
        assert not await login.finish()
        await refusal
        assert await exporter.sessions(VOLUME) == []
        assert [target.tid for target in await host.socket.targets()] == [1]


async def test_a_login_that_stalls_while_its_initiator_is_refused_never_ends(
    host: Host, exporter: TgtExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.drivers.storage.tgt_targets.DRAIN_TIMEOUT", 0.2)
    await exporter.admit(VOLUME, epoch(1))
    await exporter.admit(VOLUME, epoch(2))
    async with LiveSession(host.disk(epoch(2)), tmp_path) as new, HalfLogin(host.disk(epoch(1))) as login:
        await exporter.refuse(VOLUME, VM, 1)
        assert not await login.finish()
        await new.tell("write -P 2 0 64k")
        await new.hear("wrote 65536/65536")
        assert [session.initiator for session in await exporter.sessions(VOLUME)] == [epoch(2).initiator]


async def test_a_session_survives_the_death_of_the_target(host: Host, exporter: TgtExporter, tmp_path: Path) -> None:
    await exporter.admit(VOLUME, epoch(1))
    async with LiveSession(host.disk(epoch(1)), tmp_path) as session:
        await session.tell("write -P 3 0 64k")
        await session.hear("wrote 65536/65536")
        pid = await host.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await session.tell("read -P 3 0 64k")
        assert await exporter.check()
        assert await host.pid() not in (None, pid)
        await session.hear("read 65536/65536")
    done = await qemu_io(host.disk(epoch(1)), "read -P 3 0 64k")
    assert done.returncode == 0, done


async def test_a_new_agent_takes_the_target_over_and_no_session_notices(
    host: Host, exporter: TgtExporter, tmp_path: Path
) -> None:
    await exporter.admit(VOLUME, epoch(1))
    await exporter.admit(VOLUME, epoch(2))
    pid = await host.pid()
    async with LiveSession(host.disk(epoch(1)), tmp_path) as session:
        [before] = await exporter.sessions(VOLUME)
        successor = host.agent()
        await successor.start()
        assert await host.pid() == pid
        assert await successor.sessions(VOLUME) == [before]
        await check_access(host.disk(epoch(2)))
        await successor.refuse(VOLUME, VM, 1)
        assert await successor.sessions(VOLUME) == []
        await check_access(host.disk(epoch(2)))
        await session.tell("write -P 66 0 64k")
        await check_access(host.disk(epoch(2)))
        assert await session.ended_without("wrote")
    assert host.volume.read_bytes() == bytes(SIZE)
