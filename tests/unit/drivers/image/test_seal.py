"""Damaged copies of images: found before they are used, by a look at the files alone; never used in silence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serai.drivers.image import seal
from serai.drivers.image.base import MANIFEST, read_manifest, write_manifest
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.fake import FakeBuilder
from serai.drivers.image.store import ImageStore
from serai.lib import streamfile
from serai.lib.ids import new_id
from serai.schema.errors import InvalidError, NotFoundError
from serai.schema.image import ImageKind

CONTENT = b"disk" * 1024


def rewrite(file: Path, content: bytes) -> None:
    """Write in place, as whoever damages a file does; its times say so even within one tick of the clock."""
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


def cut(folder: Path) -> None:
    rewrite(folder / "disk.raw", CONTENT[:100])


def grow(folder: Path) -> None:
    rewrite(folder / "disk.raw", CONTENT + b"x")


def change(folder: Path) -> None:
    rewrite(folder / "disk.raw", b"d1sk" * 1024)


def change_and_turn_the_clock_back(folder: Path) -> None:
    """The mtime is the old one; the ctime cannot be set."""
    before = (folder / "disk.raw").stat()
    while (folder / "disk.raw").stat().st_ctime_ns == before.st_ctime_ns:
        (folder / "disk.raw").write_bytes(b"d1sk" * 1024)
        os.utime(folder / "disk.raw", ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(folder: Path) -> None:
    (folder / "disk.raw").unlink()


def lead_away(folder: Path) -> None:
    (folder / "disk.raw").unlink()
    (folder / "disk.raw").symlink_to("/etc/hostname")


def break_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:20])


DAMAGES = [cut, grow, change, change_and_turn_the_clock_back, remove, lead_away, break_manifest]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(tmp_path / "images")
    made.open()
    return made


async def add(store: ImageStore, kind: ImageKind = ImageKind.DISK, content: bytes = CONTENT) -> str:
    image = new_id()
    async with store.adding(image) as folder:
        (folder / "disk.raw").write_bytes(content)
        await write_manifest(folder, name="some", kind=kind, files=["disk.raw"], image_format="raw")
    return image


class Reads:
    """Counts how often contents are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0

        async def counted(path: Path, *, size: int | None = None) -> str:
            self.count += 1
            return await streamfile.sha256_file(path, size=size)

        monkeypatch.setattr(seal, "sha256_file", counted)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_damaged_copy_is_dropped(
    store: ImageStore, tmp_path: Path, damage: Callable[[Path], None], restarted: bool
) -> None:
    image = await add(store)
    await store.check(image)
    if restarted:
        store = ImageStore(tmp_path / "images")
    damage(store.folder(image))
    with pytest.raises(NotFoundError) as caught:
        await store.checked_disk(image)
    info = caught.value.info
    assert (info.field, info.value) == ("image", image)
    assert (MANIFEST if damage is break_manifest else "disk.raw") in info.message
    assert info.remedy
    assert list((tmp_path / "images").iterdir()) == []
    with pytest.raises(NotFoundError):
        await store.check(image)


async def test_a_sound_copy_is_not_read_again(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await add(store)
    reads = Reads(monkeypatch)
    for one in (store, store, ImageStore(tmp_path / "images")):
        file, image_format = await one.checked_disk(image)
        assert (file.read_bytes(), image_format) == (CONTENT, "raw")
        assert await one.checked_file(image, "disk.raw") == file
    assert reads.count == 0


async def test_a_copy_that_was_touched_is_read_once(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that an older version of Serai made, without a seal: it gets one."""
    image = await add(store)
    for strange in (lambda folder: os.utime(folder / "disk.raw"), lambda folder: (folder / seal.STAMP).unlink()):
        reads, fresh = Reads(monkeypatch), ImageStore(tmp_path / "images")
        strange(store.folder(image))
        await asyncio.gather(*(fresh.check(image) for _ in range(5)))
        assert reads.count == 2  # once to find it sound, once to seal it
        (fresh.folder(image) / "disk.raw").chmod(0o444)


async def test_a_stamp_that_cannot_be_read_proves_nothing(store: ImageStore, tmp_path: Path) -> None:
    image = await add(store)
    (store.folder(image) / seal.STAMP).write_bytes(b"\0{[")
    fresh = ImageStore(tmp_path / "images")
    assert (await fresh.check(image)).name == "some"
    assert seal.intact(fresh.folder(image), fresh.manifest(image))


async def test_files_are_read_only_and_durable_before_they_have_their_name(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    image = await add(store)
    folder = store.folder(image)
    names = [path.removeprefix(str(tmp_path / "images")) for path in synced]
    part = f"/.part-{image}"
    # The contents, then the folder that lists them, and last the name that makes it the image.
    assert names.index(f"{part}/disk.raw") < names.index(part) < names.index("")
    assert names.index(f"{part}/{MANIFEST}") < names.index(part)
    assert {path.name for path in folder.iterdir()} == {"disk.raw", MANIFEST, seal.STAMP}
    for name in ("disk.raw", MANIFEST):
        assert (folder / name).stat().st_mode & 0o777 == 0o444


async def test_one_copy_takes_the_place_of_another_whole(store: ImageStore, tmp_path: Path) -> None:
    image = await add(store)
    with pytest.raises(RuntimeError):
        async with store.adding(image):
            raise RuntimeError("the download broke")
    assert (await store.checked_disk(image))[0].read_bytes() == CONTENT
    async with store.adding(image) as folder:
        (folder / "disk.raw").write_bytes(b"new")
        await write_manifest(folder, name="new", kind=ImageKind.DISK, files=["disk.raw"], image_format="raw")
        assert (await store.check(image)).name == "some"
    assert (await store.check(image)).name == "new"
    assert (await store.checked_disk(image))[0].read_bytes() == b"new"
    assert [entry.name for entry in (tmp_path / "images").iterdir()] == [image]


async def test_a_deletion_that_was_cut_short_is_none_or_whole(store: ImageStore, tmp_path: Path) -> None:
    """What a crash leaves of it is not an image, and is swept."""
    image = await add(store)
    store.folder(image).rename(tmp_path / "images" / f".part-{image}-gone")
    fresh = ImageStore(tmp_path / "images")
    assert not fresh.folder(image).exists()
    fresh.open()
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_kernel_image_has_no_disk_to_clone(store: ImageStore) -> None:
    image = await add(store, ImageKind.KERNEL)
    with pytest.raises(InvalidError, match="no disk"):
        await store.checked_disk(image)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_image_in_the_cache_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    builder = FakeBuilder(CONTENT)
    folder = await ensure_image(builder, tmp_path)
    damage(folder)
    assert await ensure_image(builder, tmp_path) == folder
    assert builder.builds == 2
    assert (folder / "disk.raw").read_bytes() == CONTENT


async def test_a_cached_image_of_an_older_version_is_sealed_not_built(tmp_path: Path) -> None:
    builder = FakeBuilder(CONTENT)
    folder = await ensure_image(builder, tmp_path)
    (folder / seal.STAMP).unlink()
    await ensure_image(builder, tmp_path)
    assert (builder.builds, seal.intact(folder, read_manifest(folder))) == (1, True)
