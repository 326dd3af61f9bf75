"""The exporter with a real tgtd: its record, its process, and who may listen and open what. Sessions: test_fence.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from tests.support.initiator import check_access, qemu_io, qemu_io_argv
from tests.support.iscsi import SIZE, VOLUME, Host, epoch, free_portal

from serai.drivers.storage.export_records import ExportRecords
from serai.drivers.storage.iscsi import TgtExporter
from serai.drivers.storage.tgt_socket import Mode, Op, TgtError
from serai.drivers.storage.tgt_targets import GUARD, TARGET_PREFIX
from serai.lib.paths import HostPaths
from serai.lib.process import run, spawn
from serai.schema.errors import HostError, InvalidError, UnavailableError

DEADLINE = 30


async def test_every_export_comes_back_under_its_old_number(host: Host, tmp_path: Path) -> None:
    agent = host.agent()
    await agent.start()
    names = [f"{number:012x}" for number in range(4)]
    for name in names:
        await agent.export(name, host.volume)
        await agent.admit(name, epoch(1))
    await agent.unexport(names[1])
    before = await host.socket.targets()
    assert [target.tid for target in before] == [1, 3, 4]
    pid = await host.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await agent.check()
    assert await host.socket.targets() == before
    assert (await agent.export(names[1], host.volume)).target_iqn == TARGET_PREFIX + names[1]
    assert [target.tid for target in await host.socket.targets()] == [1, 3, 4, 5]


async def test_the_target_outlives_the_agents_process(host: Host) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from serai.lib.paths import HostPaths;"
        "from serai.drivers.storage.iscsi import TgtExporter;"
        "paths = HostPaths(Path(sys.argv[1]), Path(sys.argv[2]));"
        "asyncio.run(TgtExporter(paths, sys.argv[3], int(sys.argv[4])).start())"
    )
    where = [str(host.paths.state), str(host.paths.run), host.address, str(host.port)]
    await run([sys.executable, "-c", program, *where])
    pid = await host.pid()
    assert pid is not None
    assert os.getsid(pid) == pid
    assert (host.paths.tgtd / "tgtd.pid").read_text() == f"{pid}\n"
    successor = host.agent()
    await successor.start()
    assert await host.pid() == pid


async def test_what_changed_behind_its_back_is_put_right(host: Host, exporter: TgtExporter, tmp_path: Path) -> None:
    """Whatever an agent that was killed in between, or a person with tgtadm, left in the daemon."""
    await exporter.admit(VOLUME, epoch(1))
    await host.socket.bind_initiator(1, epoch(9).initiator)
    await host.socket.new_account("stranger", "strangers-secret")
    await host.socket.bind_account(1, "stranger")
    await host.socket.new_target(7, "iqn.2026-01.io.serai:vol.stranger")
    await host.socket.unbind_initiator(1, epoch(1).initiator)
    assert not await exporter.check()
    [target] = await host.socket.targets()
    assert target.initiators == (epoch(1).initiator,)
    assert target.accounts == (GUARD, epoch(1).user)
    await check_access(host.disk(epoch(1)))
    successor = host.agent()
    await successor.start()
    assert sorted(await host.socket.accounts()) == sorted([GUARD, epoch(1).user])


async def test_a_target_that_nobody_may_use_asks_for_a_secret_all_the_same(host: Host, exporter: TgtExporter) -> None:
    """Without the guard account, a name alone would open the volume."""
    await host.socket.bind_initiator(1, epoch(1).initiator)
    disk = host.disk(epoch(1))
    options = (
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={disk.portal},file.target={disk.target},"
        f"file.lun={disk.lun},file.initiator-name={disk.initiator}"
    )
    done = await run(["qemu-io", "-c", "read 0 512", "--image-opts", options], check=False)
    assert done.returncode == 1
    assert b"Authentication" in done.stderr, done.stderr


async def test_it_listens_on_its_address_alone(host: Host, exporter: TgtExporter) -> None:
    _reader, writer = await asyncio.open_connection(host.address, host.port)
    writer.close()
    await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", host.port)
    assert await host.socket.portals() == [exporter.portal]


async def test_a_successor_with_another_address_moves_the_portal(host: Host, exporter: TgtExporter) -> None:
    old = host.address, host.port
    host.address, host.port = free_portal()
    successor = host.agent()
    await successor.start()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*old)
    await successor.admit(VOLUME, epoch(1))
    await check_access(host.disk(epoch(1)))


async def test_an_address_that_is_taken_or_not_ours_is_refused(host: Host, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((host.address, host.port))
        other.listen()
        with pytest.raises(UnavailableError) as taken:
            await host.agent().start()
    assert taken.value.info.field == "portal"
    with pytest.raises(UnavailableError) as foreign:
        await TgtExporter(HostPaths(tmp_path / "s", tmp_path / "r"), "192.0.2.1").start()
    assert foreign.value.info.value == "192.0.2.1:3260"
    assert await host.pid() is None


async def test_no_secret_is_in_any_command_line_or_log_and_the_record_is_roots(
    host: Host, exporter: TgtExporter
) -> None:
    await exporter.admit(VOLUME, epoch(1))
    await check_access(host.disk(epoch(1)))
    secret = epoch(1).password.get_secret_value()
    pid = await host.pid()
    for file in ("cmdline", "environ"):
        assert secret.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
    assert secret not in (host.paths.tgtd / "tgtd.log").read_text()
    record = host.paths.state / "exports.json"
    assert record.stat().st_mode & 0o777 == 0o600
    assert secret in record.read_text()
    assert host.paths.tgtd.stat().st_mode & 0o777 == 0o700


async def test_a_volume_grows_under_its_target(host: Host, exporter: TgtExporter) -> None:
    await exporter.admit(VOLUME, epoch(1))
    assert b"8 MiB" in (await qemu_io(host.disk(epoch(1)), "length")).stdout
    os.truncate(host.volume, 2 * SIZE)
    await exporter.grow(VOLUME)
    assert b"16 MiB" in (await qemu_io(host.disk(epoch(1)), "length")).stdout
    assert not await exporter.check()
    done = await qemu_io(host.disk(epoch(1)), f"write -P 5 {2 * SIZE - 4096} 4096")
    assert done.returncode == 0


async def test_discarded_blocks_are_given_back(host: Host, exporter: TgtExporter) -> None:
    await exporter.admit(VOLUME, epoch(1))
    assert (await qemu_io(host.disk(epoch(1)), "write -P 5 0 4M", "flush")).returncode == 0
    full = host.volume.stat().st_blocks
    argv = qemu_io_argv(host.disk(epoch(1)), "/dev/stdin")
    argv[-1] += ",discard=unmap"
    secret = epoch(1).password.get_secret_value().encode()
    done = await run([*argv[:-2], "-c", "discard 0 4M", *argv[-2:]], input=secret)
    assert done.returncode == 0
    assert host.volume.stat().st_blocks < full


async def test_a_volume_that_cannot_be_opened_is_not_exported(host: Host, exporter: TgtExporter) -> None:
    with pytest.raises(TgtError, match="missing"):
        await exporter.export("ffffffffffff", host.volume.with_name("gone"))
    assert [target.tid for target in await host.socket.targets()] == [1]
    assert "ffffffffffff" not in (host.paths.state / "exports.json").read_text()
    for path in (Path("relative"), host.volume.with_name("a,bstype=null")):
        with pytest.raises(InvalidError):
            await exporter.export("ffffffffffff", path)


async def test_a_volume_that_vanished_does_not_keep_the_others_out(
    host: Host, exporter: TgtExporter, caplog: pytest.LogCaptureFixture
) -> None:
    await exporter.admit(VOLUME, epoch(1))
    doomed = host.volume.with_name("doomed")
    doomed.write_bytes(bytes(SIZE))
    await exporter.export("000000000001", doomed)
    doomed.unlink()
    pid = await host.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await exporter.check()
    assert "000000000001" in caplog.text
    await check_access(host.disk(epoch(1)))


async def test_a_target_that_hangs_is_reported_and_left_alone(
    host: Host, exporter: TgtExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.drivers.storage.tgt_socket.ANSWER_TIMEOUT", 0.3)
    pid = await host.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError, match="did not answer"):
            await exporter.check()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not await exporter.check()
    assert await host.pid() == pid


async def test_the_daemons_answers_fit_our_records(host: Host, exporter: TgtExporter) -> None:
    """The layout of the request holds for this daemon: the last field, `force`, and all before it arrive."""
    with pytest.raises(TgtError, match="TARGET_EXIST"):
        await host.socket.new_target(1, "iqn.2026-01.io.serai:other")
    with pytest.raises(TgtError, match="NO_TARGET"):
        await host.socket.delete_target(5)
    with pytest.raises(TgtError, match="NO_LUN"):
        await host.socket.request("x", Mode.DEVICE, Op.UPDATE, "online=1", tid=1, lun=2)
    await exporter.admit(VOLUME, epoch(1))
    with pytest.raises(TgtError, match="USER_EXIST"):
        await host.socket.new_account(epoch(1).user, "whatever-it-is")
    await host.socket.close_connection(1, 99, 99)


async def test_a_record_that_cannot_be_read_is_not_taken_for_an_empty_one(host: Host) -> None:
    file = host.paths.state / "exports.json"
    file.parent.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"version": 2, "exports": []}), json.dumps({"version": 1, "exports": [{}]})):
        file.write_text(text)
        with pytest.raises(HostError) as caught:
            await host.agent().start()
        assert caught.value.info.value == str(file)
    file.unlink()
    ExportRecords(file).load()


async def test_a_second_daemon_cannot_take_the_first_ones_place(host: Host, exporter: TgtExporter) -> None:
    pid = await host.pid()
    environment = {"TGT_IPC_SOCKET": str(host.paths.tgtd / "control"), "PATH": os.environ["PATH"]}
    second = await spawn(["tgtd", "-f", "--iscsi", "portal=127.0.0.1:1"], env=environment)
    async with asyncio.timeout(DEADLINE):
        assert await second.wait() != 0
    assert await host.pid() == pid


async def test_the_daemon_keeps_no_connection_of_ours(host: Host, exporter: TgtExporter) -> None:
    pid = await host.pid()
    descriptors = Path(f"/proc/{pid}/fd")

    async def open_at_most(count: int) -> None:
        """Wait until no more are open: the daemon closes a connection some time after it has answered."""
        async with asyncio.timeout(DEADLINE):
            while len(list(descriptors.iterdir())) > count:
                await asyncio.sleep(0.01)

    # /dev/null, log, lock, listeners, epoll and its like, and the volume.
    await open_at_most(20)
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        assert await host.socket.peer() == pid
        await exporter.export(VOLUME, host.volume)
    await open_at_most(before)
