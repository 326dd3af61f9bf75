"""`qemu-img` on strangers' images: as whom it runs, within which limits, and on what."""

from __future__ import annotations

import os
import pwd
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serai.lib import qemuimg
from serai.lib.process import Limits, ProcessError, ProgramMissingError, run
from serai.schema.errors import InvalidError

MIB = 1 << 20
SPY = """#!/bin/sh
{ id -un; id -Gn; ulimit -d; ulimit -t; ulimit -f; ulimit -c; for word in "$@"; do echo "$word"; done; } >&2
exit 1
"""


def silent(done: int, total: int) -> None:
    """For who does not watch."""


@pytest.fixture
async def image(tmp_path: Path) -> Path:
    """A qcow2 image behind a folder through which only root passes."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "plain").write_bytes(b"\x55" * MIB)
    await run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(closed / "plain"), str(closed / "image")])
    return closed / "image"


@pytest.fixture
def spy(image: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A qemu-img that fails with a word on how it was started, in a folder through which everybody passes."""
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "qemu-img"
        program.write_text(SPY)
        program.chmod(0o755)
        program.parent.chmod(0o755)
        monkeypatch.setenv("PATH", f"{name}:{os.environ['PATH']}")
        yield


async def test_what_it_says_of_an_image(image: Path) -> None:
    assert (await qemuimg.info(image, "qcow2", "cloud"))["virtual-size"] == MIB
    assert (await qemuimg.check(image, "cloud"))["check-errors"] == 0


async def test_a_conversion(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch(mode=0o600)
    seen: list[tuple[int, int]] = []
    await qemuimg.convert(image, "qcow2", target, MIB, lambda *figures: seen.append(figures), foreign=True)
    assert target.read_bytes() == b"\x55" * MIB
    assert seen[-1] == (image.stat().st_size,) * 2


@pytest.mark.usefixtures("spy")
async def test_it_runs_as_qemus_user_within_limits_on_descriptors(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    with pytest.raises(InvalidError) as asked:
        await qemuimg.info(image, "qcow2", "cloud")
    with pytest.raises(ProcessError) as converted:
        await qemuimg.convert(image, "qcow2", target, 20 * MIB, silent, foreign=True)
    words = [caught.value.info.message.partition(": ")[2].splitlines() for caught in (asked, converted)]
    for said, seconds, blocks in zip(words, ("600", "602"), (MIB // 512, 21 * MIB // 512), strict=True):
        assert said[:6] == ["serai-qemu", "serai-qemu", str(MIB), seconds, str(blocks), "0"]
    assert words[0][6:] == ["info", "--output=json", "-U", "-f", "qcow2", "cloud"]
    assert all(word.startswith("/dev/fd/") for word in words[1][-2:])


async def test_a_file_that_qemus_user_may_not_read_is_not_read(image: Path) -> None:
    image.chmod(0o600)
    with pytest.raises(InvalidError, match="Permission denied"):
        await qemuimg.info(image, "qcow2", "cloud")


async def test_a_conversion_cannot_write_more_than_the_volume_has(image: Path, tmp_path: Path) -> None:
    """An image that grows between two looks at it."""
    big = tmp_path / "big"
    await run(["qemu-img", "create", "-q", "-f", "qcow2", str(big), "1G"])
    target = tmp_path / "target"
    target.touch()
    with pytest.raises(ProcessError):
        await qemuimg.convert(big, "qcow2", target, MIB, silent, foreign=True)
    assert target.stat().st_size <= MIB + qemuimg.WORDS


async def test_our_own_volumes_are_read_as_ourselves(tmp_path: Path) -> None:
    volume, target = tmp_path / "volume", tmp_path / "target"
    volume.write_bytes(b"\x55" * MIB)
    volume.chmod(0o600)
    target.touch()
    await qemuimg.convert(volume, "raw", target, MIB, silent, foreign=False)
    assert target.read_bytes() == volume.read_bytes()
    assert target.stat().st_uid == os.getuid()


@pytest.mark.parametrize("what", ["backing", "data"])
async def test_an_image_that_refers_to_another_file_never_gets_to_it(image: Path, what: str) -> None:
    data = bytearray(image.read_bytes())
    if what == "backing":
        data[8:20] = struct.pack(">QI", 512, 10)
    else:
        data[72:80] = struct.pack(">Q", 1 << 2)
    image.write_bytes(data)
    for question in (qemuimg.info(image, "qcow2", "cloud"), qemuimg.check(image, "cloud")):
        with pytest.raises(InvalidError, match="refers to another file"):
            await question


async def test_limits_hold() -> None:
    limits = Limits(memory=64 * MIB, cpu=1, file_size=4096)
    for script, why in (
        ("b'x' * (200 << 20)", "MemoryError"),
        ("while True: pass", "SIGXCPU|SIGKILL"),
        ("import tempfile; tempfile.TemporaryFile().write(bytes(9000))", "SIGXFSZ|File too large"),
    ):
        with pytest.raises(ProcessError, match=why):
            await run(["python3", "-c", script], limits=limits)
    with pytest.raises(ProgramMissingError):
        await run(["serai-no-such-program"], limits=limits)


async def test_another_user_has_no_groups_of_ours() -> None:
    said = await run(["id"], user="serai-qemu")
    entry = pwd.getpwnam("serai-qemu")
    assert said.text.startswith(f"uid={entry.pw_uid}(serai-qemu) gid={entry.pw_gid}(serai-qemu) groups={entry.pw_gid}")
