"""The `dir` pool on real file systems: crashes, rights, and running out of room."""

from __future__ import annotations

import asyncio
import grp
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serai.drivers.storage.directory import DirectoryPool
from serai.drivers.storage.probe import reflink
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.schema.errors import CapacityError, ConflictError, HostError, InvalidError, UnsupportedError

MIB = 1 << 20
POOL = "b" * 12
GROUP = "serai-qemu"


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of 4 MiB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    await run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)])
    try:
        yield place
    finally:
        await run(["umount", "-l", str(place)])


@pytest.fixture
async def reflinking(tmp_path: Path) -> AsyncIterator[Path]:
    """An XFS, which shares blocks between files, in a sparse file."""
    image, place = tmp_path / "xfs.img", tmp_path / "xfs"
    image.touch()
    os.truncate(image, 320 * MIB)
    place.mkdir()
    await run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)])
    await run(["mount", "-o", "loop", str(image), str(place)])
    try:
        yield place
    finally:
        await run(["umount", "-l", str(place)])


@pytest.fixture
async def pool(tmp_path: Path) -> DirectoryPool:
    made = DirectoryPool(tmp_path / "pool", pool=POOL)
    await made.open()
    return made


async def names(folder: Path) -> list[str]:
    """What is in a folder, but for the mark that makes it a pool's."""
    return sorted(set(await asyncio.to_thread(os.listdir, folder)) - {".serai-pool"})


async def test_an_image_that_does_not_fit_leaves_nothing(small: Path, tmp_path: Path) -> None:
    pool = DirectoryPool(small, pool=POOL)
    await pool.open()
    before = (await pool.status()).free
    image = tmp_path / "large.raw"
    image.write_bytes(os.urandom(6 * MIB))
    qcow2 = tmp_path / "large.qcow2"
    await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(image), str(qcow2)])
    for file, kind in ((image, "raw"), (qcow2, "qcow2")):
        with pytest.raises(CapacityError) as caught:
            await pool.create_from_image(new_id(), file, kind, 6 * MIB)
        assert caught.value.info.field == "size"
        assert caught.value.info.value == str(6 * MIB)
        assert caught.value.info.remedy
        assert await names(small) == []
    assert (await pool.status()).free == before > 3 * MIB


async def test_a_clone_that_does_not_fit_leaves_nothing(small: Path, tmp_path: Path) -> None:
    pool = DirectoryPool(small, pool=POOL)
    await pool.open()
    image = tmp_path / "half.raw"
    image.write_bytes(os.urandom(3 * MIB))
    source = new_id()
    await pool.create_from_image(source, image, "raw", 3 * MIB)
    with pytest.raises(CapacityError):
        await pool.clone_volume(source, new_id())
    assert await names(small) == [f"{source}.raw"]
    assert [volume.allocated for volume in await pool.list_volumes()] == [3 * MIB]


async def test_open_sweeps_what_a_crash_left_and_nothing_else(pool: DirectoryPool, tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    volume = new_id()
    await pool.create_volume(volume, MIB)
    (folder / f".serai-new-{new_id()}-00000000").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    (folder / "0123456789ab").write_text("no volume")
    (folder / "0123456789ab.raw").mkdir()
    (folder / "ffffffffffff.raw").symlink_to("/etc/passwd")
    assert [found.id for found in await pool.list_volumes()] == [volume]
    await pool.open()
    assert await names(folder) == sorted(
        [f"{volume}.raw", "notes.txt", "0123456789ab", "0123456789ab.raw", "ffffffffffff.raw"]
    )


async def test_a_cancelled_copy_leaves_neither_file_nor_process(pool: DirectoryPool, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(os.urandom(64 * MIB))
    started = asyncio.Event()
    copy = asyncio.create_task(
        pool.create_from_image(new_id(), image, "raw", 64 * MIB, lambda _done, _total: started.set())
    )
    while not (await names(tmp_path / "pool")) and not copy.done():
        await asyncio.sleep(0)
    copy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copy
    assert await names(tmp_path / "pool") == []
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _mentions(pid, image)]


def _mentions(pid: str, file: Path) -> bool:
    try:
        return str(file).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def test_exported_volumes_are_roots_alone(pool: DirectoryPool, tmp_path: Path) -> None:
    volume = new_id()
    await pool.create_volume(volume, MIB)
    assert stat.S_IMODE(pool.volume_path(volume).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pool").stat().st_mode) == 0o700


async def test_local_volumes_can_be_opened_but_not_listed_by_qemus_group(tmp_path: Path) -> None:
    pool = DirectoryPool(tmp_path / "local", pool=POOL, group=GROUP)
    await pool.open()
    volume = new_id()
    await pool.create_volume(volume, MIB)
    gid = grp.getgrnam(GROUP).gr_gid
    facts, folder = pool.volume_path(volume).stat(), (tmp_path / "local").stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (0, gid, 0o660)
    assert (folder.st_gid, stat.S_IMODE(folder.st_mode)) == (gid, 0o710)
    with pytest.raises(UnsupportedError):
        await DirectoryPool(tmp_path / "none", pool=POOL, group="no-such-group").open()


async def test_copies_are_sparse_where_the_source_is(pool: DirectoryPool, tmp_path: Path) -> None:
    image = tmp_path / "holes.raw"
    image.write_bytes(b"x" * 4096)
    os.truncate(image, 64 * MIB)
    first, second = sorted([new_id(), new_id()])
    await pool.create_from_image(first, image, "raw", 128 * MIB)
    await pool.clone_volume(first, second)
    assert [(volume.size, volume.allocated < MIB) for volume in await pool.list_volumes()] == [(128 * MIB, True)] * 2


async def test_copies_share_their_blocks_where_the_file_system_can(reflinking: Path) -> None:
    pool = DirectoryPool(reflinking, pool=POOL)
    await pool.open()
    assert (await reflink(reflinking)).found
    image = reflinking / "image.raw"
    image.write_bytes(os.urandom(32 * MIB))
    first, second = new_id(), new_id()
    seen: list[tuple[int, int]] = []
    before = (await pool.status()).free
    await pool.create_from_image(first, image, "raw", 64 * MIB, lambda done, total: seen.append((done, total)))
    await pool.clone_volume(first, second)
    assert before - (await pool.status()).free < 4 * MIB
    assert seen == [(32 * MIB, 32 * MIB)]
    with pool.volume_path(first).open("r+b") as file:
        file.write(bytes(4096))
    content = image.read_bytes()
    assert pool.volume_path(second).read_bytes() == content + bytes(32 * MIB)
    assert pool.volume_path(first).read_bytes()[4096 : 32 * MIB] == content[4096:]


async def test_an_odd_raw_image_is_rounded_up_to_a_sector(pool: DirectoryPool, tmp_path: Path) -> None:
    image = tmp_path / "odd.raw"
    image.write_bytes(b"y" * 1000)
    volume = new_id()
    await pool.create_from_image(volume, image, "raw", 1024)
    assert pool.volume_path(volume).read_bytes() == b"y" * 1000 + bytes(24)


async def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError) as caught:
        await DirectoryPool(tmp_path / "file", pool=POOL).open()
    assert caught.value.info.field == "path"


async def test_a_folder_that_others_use_keeps_its_rights(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter").touch()
    for mode in (0o710, 0o755):  # the rights that a pool's folder has prove nothing
        home.chmod(mode)
        with pytest.raises(ConflictError, match="letter"):
            await DirectoryPool(home, pool=POOL, group=GROUP).open()
    with pytest.raises(ConflictError, match="letter"):
        await DirectoryPool(home, pool=POOL, group=GROUP).open()
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    (home / "letter").unlink()
    (home / "lost+found").mkdir()
    pool = DirectoryPool(home, pool=POOL, group=GROUP)
    await pool.open()
    # Once it is the pool's, a stray file does not shut it.
    (home / "note").touch()
    await pool.open()


async def test_a_folder_inside_another_pools_is_refused_and_not_made(pool: DirectoryPool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    for inner in (tmp_path / "pool" / "deep" / "inner", tmp_path / "link" / "inner"):
        with pytest.raises(ConflictError, match="inside another pool's"):
            await DirectoryPool(inner, pool=POOL).open()
        assert not inner.parent.joinpath("deep").exists()
        assert not inner.exists()
    await pool.open()


async def test_a_folder_that_is_gone_is_said_to_be(pool: DirectoryPool, tmp_path: Path) -> None:
    await pool.create_volume(volume := new_id(), MIB)
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    other = new_id()
    for call in (
        pool.status(),
        pool.list_volumes(),
        pool.create_volume(other, MIB),
        pool.delete_volume(volume),
    ):
        with pytest.raises(HostError, match="Mount its file system"):
            await call
    (tmp_path / "elsewhere").rename(tmp_path / "pool")
    assert [found.id for found in await pool.list_volumes()] == [volume]


async def test_a_path_with_a_null_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="path"):
        await DirectoryPool(tmp_path / "a\0b", pool=POOL).open()


async def test_a_folder_bears_the_name_of_its_pool(tmp_path: Path) -> None:
    """Two machines may see one folder, and know nothing of one another."""
    folder = tmp_path / "shared"
    pool, other = DirectoryPool(folder, pool=POOL), DirectoryPool(folder, pool="c" * 12)
    await pool.open()
    await pool.create_volume(volume := new_id(), MIB)
    for call in (other.open(), other.open(make=False), other.list_volumes(), other.delete_volume(volume)):
        with pytest.raises(ConflictError, match=f"belongs to pool '{POOL}'") as caught:
            await call
        assert str(folder / ".serai-pool") in (caught.value.info.remedy or "")
    assert [found.id for found in await pool.list_volumes()] == [volume]
    # An empty mark, of an older pool or by hand, is whoever's comes first.
    (folder / ".serai-pool").write_bytes(b"")
    await pool.open(make=False)
    with pytest.raises(ConflictError):
        await other.open()


async def test_of_two_that_open_one_folder_at_once_one_has_it(tmp_path: Path) -> None:
    pools = [DirectoryPool(tmp_path / "shared", pool=letter * 12) for letter in "abcdef"]
    outcomes = await asyncio.gather(*(pool.open() for pool in pools), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError"] * 5 + ["NoneType"]
    assert await names(tmp_path / "shared") == []


async def test_a_given_folder_is_free_again_and_with_it_all_below(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    pool = DirectoryPool(folder, pool=POOL)
    await pool.open()
    (folder / "note").touch()
    await pool.remove(keep=True)
    assert await asyncio.to_thread(os.listdir, folder) == ["note"]
    (folder / "note").unlink()
    await DirectoryPool(folder / "inner", pool="c" * 12).open()
