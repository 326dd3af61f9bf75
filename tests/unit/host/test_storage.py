"""A host's pools, on real folders: what goes wrong with one stays its own."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serai.drivers.storage.base import Exporter, PoolDriver, Progress
from serai.drivers.storage.directory import DirectoryPool
from serai.drivers.storage.fake import FakeExporter, FakePool
from serai.host.journal import Journal
from serai.host.records import Records
from serai.host.storage import HostStorage
from serai.lib.paths import HostPaths
from serai.schema.commands.pool import ClosePool, OpenPool
from serai.schema.commands.volume import CreateVolume, DeleteVolume, GrowVolume, MeasureVolume
from serai.schema.errors import ConflictError, HostError, NotFoundError, UnavailableError
from serai.schema.volume import ExportKind, PoolDriverName

ONE, TWO = "1" * 12, "2" * 12


def at_path(pool: OpenPool) -> PoolDriver:
    return DirectoryPool(Path(pool.path), pool=pool.pool)


def storage(
    records: Records,
    paths: HostPaths,
    driver: Callable[[OpenPool], PoolDriver] = at_path,
    exporter: Exporter | None = None,
) -> HostStorage:
    async def image(name: str) -> tuple[Path, str]:
        raise AssertionError(name)

    return HostStorage(
        records=records,
        paths=paths,
        exporter=exporter,
        portal="",
        open_driver=driver,
        image_disk=image,
    )


def paths_in(folder: Path) -> HostPaths:
    return HostPaths(state=folder / "state", run=folder / "run")


def nothing(_what: str, _part: float | None) -> None:
    """Progress that nobody wants to see."""


async def test_a_lost_folder_is_told_and_the_other_pools_live(tmp_path: Path) -> None:
    """Also after a restart: no empty folder takes the place of one that is not mounted."""
    journal = Journal.open(tmp_path / "journal")
    records = Records(journal)
    host = storage(records, paths_in(tmp_path))
    for pool, name in ((ONE, "one"), (TWO, "two")):
        path = str(tmp_path / name)
        await host.open_pool(OpenPool(pool=pool, driver=PoolDriverName.DIR, path=path, export=ExportKind.NONE))
    await asyncio.to_thread(shutil.move, tmp_path / "one", tmp_path / "away")
    for each in (host, again := storage(records, paths_in(tmp_path))):
        await each.start()
        statuses = await each.statuses()
        assert [statuses[pool].state for pool in (ONE, TWO)] == ["failed", "ready"]
        assert "Mount its file system" in statuses[ONE].reason
        assert not (tmp_path / "one").exists()
    # What is left of a pool when its file system is not mounted: an empty folder.
    (tmp_path / "one").mkdir()
    for each in (host, again):
        assert (await each.statuses())[ONE].state == "failed"
        with pytest.raises((HostError, NotFoundError)):
            await each.drop(DeleteVolume(pool=ONE, volume="0" * 12))
    (tmp_path / "one").rmdir()
    await asyncio.to_thread(shutil.move, tmp_path / "away", tmp_path / "one")
    assert (await again.statuses())[ONE].state == "ready"
    await asyncio.to_thread(shutil.rmtree, tmp_path / "one")
    with pytest.raises(HostError, match="Mount its file system"):
        await again.make(CreateVolume(pool=ONE, volume="0" * 12, size=1 << 20), nothing)
    journal.close()


async def test_only_the_agents_own_folder_goes_with_its_pool(tmp_path: Path) -> None:
    """A folder that was given stays, and so does what is no volume; a pool can be made there again."""

    def driver(pool: OpenPool) -> PoolDriver:
        return DirectoryPool(Path(pool.path) if pool.path else tmp_path / pool.pool, pool=pool.pool)

    journal = Journal.open(tmp_path / "journal")
    host = storage(Records(journal), paths_in(tmp_path), driver)
    given = OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=str(tmp_path / "given"), export=ExportKind.NONE)
    own = OpenPool(pool=TWO, driver=PoolDriverName.DIR, path="", export=ExportKind.NONE)
    for pool in (given, own):
        await host.open_pool(pool)
        await host.close_pool(ClosePool(pool=pool.pool))
    assert await asyncio.to_thread(os.listdir, tmp_path / "given") == []
    assert not (tmp_path / TWO).exists()
    await host.open_pool(own)
    (tmp_path / TWO / "notes").touch()
    await host.close_pool(ClosePool(pool=TWO))
    await host.close_pool(ClosePool(pool=TWO))
    assert (tmp_path / TWO / "notes").exists()
    assert await host.statuses() == {}
    journal.close()


async def test_the_agents_own_folders_are_no_pools(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "state/journal")
    host = storage(Records(journal), paths_in(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    (tmp_path / "state/pools").mkdir()
    (tmp_path / "state/vms").mkdir()
    places = ["state", "state/pools", "state/pools/mine", "run/x", "link/pools", "state/../state/vms", "link", ""]
    for place in places:
        path = str(tmp_path / place)
        with pytest.raises(ConflictError, match="the host agent keeps its own files") as caught:
            await host.open_pool(OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=path, export=ExportKind.NONE))
        assert caught.value.info.field == "spec.path"
        assert caught.value.info.remedy
    assert sorted(await asyncio.to_thread(os.listdir, tmp_path / "state")) == ["journal", "pools", "vms"]
    # Beside them there is room.
    path = str(tmp_path / "state/disks")
    await host.open_pool(OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=path, export=ExportKind.NONE))
    journal.close()


async def test_a_pool_elsewhere_is_shown_among_the_agents_own(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "state/journal")
    host = storage(Records(journal), paths_in(tmp_path))
    given = OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=str(tmp_path / "given"), export=ExportKind.NONE)
    for _ in range(2):
        await host.open_pool(given)
        assert (tmp_path / "state/pools" / ONE).readlink() == tmp_path / "given"
    await host.close_pool(ClosePool(pool=ONE))
    assert not (tmp_path / "state/pools" / ONE).is_symlink()
    journal.close()


async def test_the_target_ends_with_the_last_pool_that_needs_it(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    exporter = FakeExporter()
    host = storage(Records(journal), paths_in(tmp_path), exporter=exporter)
    for pool, export in ((ONE, ExportKind.ISCSI), (TWO, ExportKind.NONE)):
        await host.open_pool(OpenPool(pool=pool, driver=PoolDriverName.DIR, path=str(tmp_path / pool), export=export))
    await exporter.check()
    await host.close_pool(ClosePool(pool=ONE))
    with pytest.raises(UnavailableError, match="not started"):
        await exporter.check()
    await host.check()
    again = OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=str(tmp_path / ONE), export=ExportKind.ISCSI)
    await host.open_pool(again)
    assert not await exporter.check()
    journal.close()


async def test_a_folder_is_one_pools_whatever_way_leads_there(tmp_path: Path) -> None:
    """Links and `..` are resolved where they are; the first pool may even be one whose folder is lost."""
    journal = Journal.open(tmp_path / "journal")
    host = storage(Records(journal), paths_in(tmp_path))

    def wish(pool: str, path: Path | str) -> OpenPool:
        return OpenPool(pool=pool, driver=PoolDriverName.DIR, path=str(path), export=ExportKind.NONE)

    (tmp_path / "srv").mkdir()
    await host.open_pool(wish(ONE, tmp_path / "srv/pool"))
    (tmp_path / "link").symlink_to(tmp_path / "srv/pool")
    (tmp_path / "parent").symlink_to(tmp_path / "srv")
    ways: list[Path | str] = [
        tmp_path / "link",
        tmp_path / "parent/pool",
        f"{tmp_path}/srv/../srv/pool",
        tmp_path / "srv/pool",
    ]
    for path in ways:
        with pytest.raises(ConflictError, match=f"pool {ONE} is in this folder already") as caught:
            await host.open_pool(wish(TWO, path))
        assert (caught.value.info.field, caught.value.info.value) == ("spec.path", str(path))
        assert caught.value.info.remedy
    shutil.rmtree(tmp_path / "srv/pool")
    with pytest.raises(ConflictError):
        await host.open_pool(wish(TWO, tmp_path / "link"))
    # Beside it is another place, and the same pool may be told again.
    await host.open_pool(wish(TWO, tmp_path / "parent/other"))
    await host.open_pool(wish(TWO, tmp_path / "parent/other"))
    assert set(await host.statuses()) == {ONE, TWO}
    journal.close()


async def test_two_pools_asked_for_at_once_are_not_made_in_one_folder(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    host = storage(Records(journal), paths_in(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    wishes = [
        OpenPool(pool=pool, driver=PoolDriverName.DIR, path=str(tmp_path / name), export=ExportKind.NONE)
        for pool, name in ((ONE, "pool"), (TWO, "link"))
    ]
    ended = await asyncio.gather(*(host.open_pool(wish) for wish in wishes), return_exceptions=True)
    assert sorted(isinstance(one, ConflictError) for one in ended) == [False, True]
    journal.close()


async def test_how_large_a_volume_is(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    host = storage(Records(journal), paths_in(tmp_path))
    await host.open_pool(
        OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=str(tmp_path / "one"), export=ExportKind.NONE)
    )
    look = MeasureVolume(pool=ONE, volume="0" * 12)
    with pytest.raises(NotFoundError):
        await host.look(look)
    await host.make(CreateVolume(pool=ONE, volume="0" * 12, size=1 << 20), nothing)
    assert (await host.look(look)).size == 1 << 20
    await host.grow(GrowVolume(pool=ONE, volume="0" * 12, size=2 << 20))
    assert (await host.look(look)).size == 2 << 20
    journal.close()


class SlowPool(FakePool):
    """A copy goes on until it is told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def clone_volume(self, src_id: str, dst_id: str, progress: Progress | None = None) -> None:
        self.begun.set()
        await self.go_on.wait()
        await super().clone_volume(src_id, dst_id, progress)


async def test_a_copy_that_is_given_up_does_not_stay(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    pool = SlowPool()
    host = storage(Records(journal), paths_in(tmp_path), lambda _: pool)
    await host.open_pool(OpenPool(pool=ONE, driver=PoolDriverName.DIR, path="", export=ExportKind.NONE))
    await host.make(CreateVolume(pool=ONE, volume="0" * 12, size=1 << 20), nothing)
    copy = CreateVolume(pool=ONE, volume="1" * 12, size=1 << 20, clone_of="0" * 12)
    making = asyncio.create_task(host.make(copy, nothing))
    await pool.begun.wait()
    dropping = asyncio.create_task(host.drop(DeleteVolume(pool=ONE, volume="1" * 12)))
    # It is not waited for: a copy may take hours.
    await dropping
    with pytest.raises(ConflictError, match="deleted while it is made"):
        await making
    pool.go_on.set()
    assert [volume.id for volume in await pool.list_volumes()] == ["0" * 12]
    await host.make(copy, nothing)
    assert len(await pool.list_volumes()) == 2
    journal.close()
