"""A recorded process is found again, and a stranger is not taken for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pydantic import SecretStr

from serai.drivers.hypervisor import record
from serai.drivers.hypervisor.record import Runtime
from serai.lib.process import spawn, start_time
from serai.schema.ids import VmId, VolumeId
from serai.schema.launch import Disk, IscsiDisk, Launch

VM = VmId("0123456789ab")


def launch() -> Launch:
    source = IscsiDisk(
        volume=VolumeId("00000000000b"),
        portal="h:3260",
        target="t",
        lun=1,
        initiator="i",
        user="u",
        password=SecretStr("secret"),
    )
    return Launch(
        vm=VM,
        name="t",
        generation=1,
        machine="pc-q35-10.0",
        accel="tcg",
        cpus=1,
        max_cpus=1,
        memory=1 << 25,
        uuid="6f9619ff-8b86-d011-b42d-00c04fc964ff",
        disks=[Disk(index=0, name="d", size=512, source=source)],
    )


async def test_found_while_it_lives(tmp_path: Path) -> None:
    argv = ["sh", "-c", "kill -STOP $$", f"guest={VM}"]
    child = await spawn(argv)
    try:
        started = start_time(child.pid)
        assert started is not None
        runtime = Runtime(
            pid=child.pid, start_time=started, argv_hash=record.argv_hash(argv), launch=launch(), tls_dir=tmp_path
        )
        record.write(tmp_path, runtime)
        assert (tmp_path / record.FILE).stat().st_mode & 0o777 == 0o600
        again = record.read(tmp_path)
        assert again == runtime
        found = record.find(runtime)
        assert found is not None
        assert found.pid == child.pid
        assert record.find(runtime.model_copy(update={"start_time": runtime.start_time + 1})) is None
        assert record.find(runtime.model_copy(update={"argv_hash": record.argv_hash(["other"])})) is None
    finally:
        await child.kill()
    assert record.find(runtime) is None


def test_no_record(tmp_path: Path) -> None:
    assert record.read(tmp_path) is None
    assert record.log_tail(tmp_path) == ""


async def test_a_log_is_cut_to_its_end_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / record.LOG
    last = tmp_path / "last"
    os.mkfifo(last)
    script = f"head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the reason; cat {last}"
    child = await spawn(["sh", "-c", script], stdout=file, stderr=file)
    try:
        async with asyncio.timeout(20):
            while "the reason" not in record.log_tail(tmp_path):
                await asyncio.sleep(0.01)
        record.bound_log(tmp_path)
        assert file.stat().st_size == len(record.LOG_CUT) + record.LOG_KEPT
        last.write_text("the last word\n")
        assert await child.wait() == 0
    finally:
        await child.kill()
    text = file.read_bytes()
    assert text.startswith(record.LOG_CUT)
    assert text.endswith(b"\nthe reason\nthe last word\n")
    assert b"\0" not in text
    record.bound_log(tmp_path)
    assert file.read_bytes() == text, "what is short is left alone"


def test_clear_leaves_the_log_and_a_successor(tmp_path: Path) -> None:
    runtime = Runtime(pid=10, start_time=1, argv_hash="", launch=launch(), tls_dir=None)
    record.write(tmp_path, runtime)
    (tmp_path / record.LOG).write_text("x" * 5000 + "the end")
    record.clear(tmp_path, 11)
    assert record.read(tmp_path) is not None
    record.clear(tmp_path, 10)
    assert record.read(tmp_path) is None
    assert record.log_tail(tmp_path, 9) == "xxthe end"
