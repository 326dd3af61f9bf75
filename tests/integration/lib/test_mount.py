"""Mounts and pinned mount namespaces, for real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serai.lib import mount, namespace, process
from serai.schema.errors import HostError


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder whose mounts are private, and gone at the end."""
    place = tmp_path / "with space"
    place.mkdir()
    mount.bind(place, place)
    mount.make_private(place)
    yield place
    mount.unmount_below(place)
    assert mount.mounts(place) == []


async def test_a_namespace_outlives_all_processes_and_has_its_own_mounts(folder: Path, tmp_path: Path) -> None:
    own, seen = tmp_path / "own", tmp_path / "seen"
    own.mkdir()
    seen.mkdir()
    (own / "file").write_text("inside")
    await mount.make_namespace(folder / "pin", [(own, seen)])
    enter = namespace.enter_argv(None, folder / "pin")
    assert (await process.run([*enter, "cat", str(seen / "file")])).text == "inside"
    assert not (seen / "file").exists()
    (pin,) = [found for found in mount.mounts(folder) if found.kind == "nsfs"]
    assert pin.target == folder / "pin"
    mount.unmount(pin.target)
    assert (await process.run([*enter, "true"], check=False)).returncode != 0


async def test_a_namespace_that_cannot_be_furnished_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(process.ProcessError, match="nowhere"):
        await mount.make_namespace(folder / "pin", [(tmp_path, tmp_path / "nowhere")])


async def test_what_others_have_on_loop_devices_is_not_kept_busy(folder: Path, tmp_path: Path) -> None:
    disk, there = tmp_path / "disk", tmp_path / "there"
    there.mkdir()
    await process.run(["truncate", "-s", "8M", str(disk)])
    await process.run(["mkfs.ext4", "-q", str(disk)])
    await process.run(["mount", "-o", "loop", str(disk), str(there)])
    try:
        (loop,) = mount.loops_on(tmp_path)
        await mount.make_namespace(folder / "pin", [])
        inside = await process.run([*namespace.enter_argv(None, folder / "pin"), "cat", "/proc/self/mountinfo"])
        assert str(there) not in inside.text
    finally:
        mount.unmount(there)
    # Nobody has it open any more: the kernel freed it with the last mount.
    assert mount.loops_on(tmp_path) == []
    mount.detach_loop(loop)


def test_refusals_say_what_and_why(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        mount.bind(tmp_path / "no", tmp_path)
    mount.unmount(tmp_path)
    mount.unmount(tmp_path / "no")
