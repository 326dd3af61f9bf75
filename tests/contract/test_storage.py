"""What every pool does, the fake one like the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serai.drivers.storage.base import PoolDriver
from serai.drivers.storage.directory import DirectoryPool
from serai.drivers.storage.fake import FakePool
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.schema.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
)

MIB = 1 << 20
POOL = "b" * 12


@pytest.fixture(params=["fake", "dir"])
async def pool(request: pytest.FixtureRequest, tmp_path: Path) -> PoolDriver:
    made: PoolDriver = FakePool() if request.param == "fake" else DirectoryPool(tmp_path / "pool", pool=POOL)
    await made.open()
    return made


def read(pool: PoolDriver, volume_id: str, offset: int, length: int) -> bytes:
    if isinstance(pool, FakePool):
        return pool.read(volume_id, offset, length)
    with pool.volume_path(volume_id).open("rb") as file:
        return os.pread(file.fileno(), length, offset)


@pytest.fixture
def raw_image(tmp_path: Path) -> Path:
    image = tmp_path / "image.raw"
    image.write_bytes(b"boot".ljust(512, b"!") + bytes(MIB - 1024) + b"end.".ljust(512, b"!"))
    return image


@pytest.fixture
async def qcow2_image(tmp_path: Path, raw_image: Path) -> Path:
    image = tmp_path / "image.qcow2"
    await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw_image), str(image)])
    return image


async def sizes(pool: PoolDriver) -> dict[str, int]:
    return {volume.id: volume.size for volume in await pool.list_volumes()}


async def test_a_volume_is_listed_with_its_size_until_it_is_deleted(pool: PoolDriver) -> None:
    first, second = sorted([new_id(), new_id()])
    await pool.create_volume(second, 2 * MIB)
    await pool.create_volume(first, MIB)
    assert list((await sizes(pool)).items()) == [(first, MIB), (second, 2 * MIB)]
    await pool.delete_volume(first)
    await pool.delete_volume(first)
    assert await sizes(pool) == {second: 2 * MIB}


async def test_an_empty_volume_is_zeros_and_takes_no_room(pool: PoolDriver) -> None:
    volume = new_id()
    await pool.create_volume(volume, 8 * MIB)
    assert read(pool, volume, 8 * MIB - 512, 4096) == bytes(512)
    assert (await pool.list_volumes())[0].allocated < MIB
    status = await pool.status()
    assert 0 < status.free <= status.total


async def test_an_id_is_taken_once(pool: PoolDriver) -> None:
    volume = new_id()
    await pool.create_volume(volume, MIB)
    with pytest.raises(ConflictError):
        await pool.create_volume(volume, 2 * MIB)
    assert await sizes(pool) == {volume: MIB}


@pytest.mark.parametrize(
    "name", ["", "..", "../escape000", "/etc/passwd", "0123456789AB", "0123456789ab.raw", "0123456789ab\n"]
)
async def test_only_ids_name_volumes(pool: PoolDriver, name: str, raw_image: Path) -> None:
    for attempt in (
        pool.create_volume(name, MIB),
        pool.create_from_image(name, raw_image, "raw", MIB),
        pool.clone_volume(name, new_id()),
        pool.delete_volume(name),
        pool.grow_volume(name, MIB),
    ):
        with pytest.raises(InvalidError) as caught:
            await attempt
        assert caught.value.info.field == "volume"
    with pytest.raises(InvalidError):
        pool.volume_path(name)
    assert await sizes(pool) == {}


@pytest.mark.parametrize("size", [0, -512, 1000])
async def test_sizes_are_whole_sectors(pool: PoolDriver, size: int) -> None:
    with pytest.raises(InvalidError) as caught:
        await pool.create_volume(new_id(), size)
    assert caught.value.info.field == "size"
    assert caught.value.info.remedy
    assert await sizes(pool) == {}


async def test_a_volume_larger_than_the_pool_is_refused(pool: PoolDriver) -> None:
    volume = new_id()
    too_much = (await pool.status()).total + MIB
    with pytest.raises(CapacityError) as caught:
        await pool.create_volume(volume, too_much - too_much % 512)
    assert caught.value.info.field == "size"
    assert caught.value.info.remedy
    assert await sizes(pool) == {}


async def test_a_raw_image_fills_the_start_of_a_larger_volume(pool: PoolDriver, raw_image: Path) -> None:
    volume, seen = new_id(), list[tuple[int, int]]()
    await pool.create_from_image(volume, raw_image, "raw", 4 * MIB, lambda done, total: seen.append((done, total)))
    assert await sizes(pool) == {volume: 4 * MIB}
    assert read(pool, volume, 0, MIB) == raw_image.read_bytes()
    assert read(pool, volume, MIB, 3 * MIB) == bytes(3 * MIB)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


async def test_a_qcow2_image_has_the_size_it_says(pool: PoolDriver, qcow2_image: Path) -> None:
    volume = new_id()
    await pool.create_from_image(volume, qcow2_image, "qcow2", MIB)
    assert await sizes(pool) == {volume: MIB}
    with pytest.raises(InvalidError) as caught:
        await pool.create_from_image(new_id(), qcow2_image, "qcow2", MIB - 512)
    assert caught.value.info.field == "size"
    assert await sizes(pool) == {volume: MIB}


async def test_an_image_that_leans_on_another_file_is_refused(
    pool: PoolDriver, qcow2_image: Path, raw_image: Path
) -> None:
    overlay = qcow2_image.with_name("overlay.qcow2")
    await run(["qemu-img", "create", "-f", "qcow2", "-b", str(raw_image), "-F", "raw", str(overlay)])
    with pytest.raises(InvalidError):
        await pool.create_from_image(new_id(), overlay, "qcow2", MIB)
    assert await sizes(pool) == {}


async def test_what_is_no_image_is_refused(pool: PoolDriver, raw_image: Path, tmp_path: Path) -> None:
    for error, file, kind in (
        (InvalidError, raw_image, "vmdk"),
        (InvalidError, raw_image, "qcow2"),
        (NotFoundError, tmp_path / "missing", "raw"),
    ):
        with pytest.raises(error):
            await pool.create_from_image(new_id(), file, kind, MIB)
    assert await sizes(pool) == {}


async def test_a_clone_has_the_same_content_and_a_life_of_its_own(pool: PoolDriver, raw_image: Path) -> None:
    source, copy = new_id(), new_id()
    await pool.create_from_image(source, raw_image, "raw", 2 * MIB)
    await pool.clone_volume(source, copy)
    await pool.delete_volume(source)
    assert await sizes(pool) == {copy: 2 * MIB}
    assert read(pool, copy, 0, MIB) == raw_image.read_bytes()
    with pytest.raises(NotFoundError):
        await pool.clone_volume(source, new_id())


async def test_volumes_only_grow(pool: PoolDriver, raw_image: Path) -> None:
    volume = new_id()
    await pool.create_from_image(volume, raw_image, "raw", MIB)
    await pool.grow_volume(volume, 2 * MIB)
    await pool.grow_volume(volume, 2 * MIB)
    with pytest.raises(InvalidError) as caught:
        await pool.grow_volume(volume, MIB)
    assert caught.value.info.field == "size"
    assert await sizes(pool) == {volume: 2 * MIB}
    assert read(pool, volume, 0, 2 * MIB) == raw_image.read_bytes() + bytes(MIB)
    with pytest.raises(NotFoundError):
        await pool.grow_volume(new_id(), MIB)


async def test_an_empty_pool_is_taken_away_and_can_come_again(pool: PoolDriver) -> None:
    volume = new_id()
    await pool.create_volume(volume, MIB)
    for keep in (True, False):
        await pool.remove(keep=keep)
        assert await sizes(pool) == {volume: MIB}
    await pool.delete_volume(volume)
    for keep in (True, False, True, False):
        await pool.remove(keep=keep)
    await pool.open()
    assert await sizes(pool) == {}


async def test_a_pool_knows_its_place(pool: PoolDriver) -> None:
    before = await pool.places()
    assert before
    assert await pool.places() == before
