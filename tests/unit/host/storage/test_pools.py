"""A host's pools, on real folders: what goes wrong with one stays its own."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from tests.unit.host.storage.conftest import MakePools

from serai.drivers.storage.base import PoolDriver
from serai.drivers.storage.base import PoolStatus as PoolRoom
from serai.drivers.storage.directory import DirectoryPool
from serai.drivers.storage.fake import FakeExporter
from serai.host.storage import pools
from serai.schema.commands.pool import ClosePool, OpenPool
from serai.schema.errors import ConflictError, HostError, NotFoundError, UnavailableError
from serai.schema.ids import PoolId
from serai.schema.volume import ExportKind, PoolDriverName

ONE, TWO = PoolId("1" * 12), PoolId("2" * 12)


async def test_a_lost_folder_is_told_and_the_other_pools_live(tmp_path: Path, make_pools: MakePools) -> None:
    """Also after a restart: no empty folder takes the place of one that is not mounted."""
    host = make_pools()
    for pool, name in ((ONE, "one"), (TWO, "two")):
        path = str(tmp_path / name)
        await host.open(OpenPool(pool=pool, driver=PoolDriverName.DIR, path=path, export=ExportKind.NONE))
    await asyncio.to_thread(shutil.move, tmp_path / "one", tmp_path / "away")
    for each in (host, again := make_pools()):
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
            await each.driver(ONE).delete_volume("0" * 12)
    (tmp_path / "one").rmdir()
    await asyncio.to_thread(shutil.move, tmp_path / "away", tmp_path / "one")
    assert (await again.statuses())[ONE].state == "ready"
    await asyncio.to_thread(shutil.rmtree, tmp_path / "one")
    with pytest.raises(HostError, match="Mount its file system"):
        await again.driver(ONE).create_volume("0" * 12, 1 << 20)


async def test_a_pool_that_hangs_is_told_and_keeps_no_report(
    tmp_path: Path, make_pools: MakePools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked again before it has answered."""
    asked = []
    answers = asyncio.Event()

    class Hangs(DirectoryPool):
        async def status(self) -> PoolRoom:
            if self._root.name == ONE:
                asked.append(self)
                await answers.wait()
            return await super().status()

    monkeypatch.setattr(pools, "STATUS_PATIENCE", 0.2)
    answers.set()
    host = make_pools(lambda pool: Hangs(tmp_path / pool.pool, pool=pool.pool))
    for pool in (ONE, TWO):
        await host.open(OpenPool(pool=pool, driver=PoolDriverName.DIR, path="", export=ExportKind.NONE))
    answers.clear()
    asked.clear()
    for _ in range(2):
        statuses = await host.statuses()
        assert [statuses[pool].state for pool in (ONE, TWO)] == ["failed", "ready"]
        assert "has not answered" in statuses[ONE].reason
    assert len(asked) == 1
    answers.set()
    assert (await host.statuses())[ONE].state == "ready"


async def test_only_the_agents_own_folder_goes_with_its_pool(tmp_path: Path, make_pools: MakePools) -> None:
    """A folder that was given stays, and so does what is no volume; a pool can be made there again."""

    def driver(pool: OpenPool) -> PoolDriver:
        return DirectoryPool(Path(pool.path) if pool.path else tmp_path / pool.pool, pool=pool.pool)

    host = make_pools(driver)
    given = OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=str(tmp_path / "given"), export=ExportKind.NONE)
    own = OpenPool(pool=TWO, driver=PoolDriverName.DIR, path="", export=ExportKind.NONE)
    for pool in (given, own):
        await host.open(pool)
        await host.close(ClosePool(pool=pool.pool))
    assert await asyncio.to_thread(os.listdir, tmp_path / "given") == []
    assert not (tmp_path / TWO).exists()
    await host.open(own)
    (tmp_path / TWO / "notes").touch()
    await host.close(ClosePool(pool=TWO))
    await host.close(ClosePool(pool=TWO))
    assert (tmp_path / TWO / "notes").exists()
    assert await host.statuses() == {}


async def test_the_agents_own_folders_are_no_pools(tmp_path: Path, make_pools: MakePools) -> None:
    host = make_pools()
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    (tmp_path / "state/pools").mkdir()
    (tmp_path / "state/vms").mkdir()
    places = ["state", "state/pools", "state/pools/mine", "run/x", "link/pools", "state/../state/vms", "link", ""]
    for place in places:
        path = str(tmp_path / place)
        with pytest.raises(ConflictError, match="the host agent keeps its own files") as caught:
            await host.open(OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=path, export=ExportKind.NONE))
        assert caught.value.info.field == "spec.path"
        assert caught.value.info.remedy
    assert sorted(await asyncio.to_thread(os.listdir, tmp_path / "state")) == ["journal", "pools", "vms"]
    # Beside them there is room.
    path = str(tmp_path / "state/disks")
    await host.open(OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=path, export=ExportKind.NONE))


async def test_a_pool_elsewhere_is_shown_among_the_agents_own(tmp_path: Path, make_pools: MakePools) -> None:
    host = make_pools()
    given = OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=str(tmp_path / "given"), export=ExportKind.NONE)
    for _ in range(2):
        await host.open(given)
        assert (tmp_path / "state/pools" / ONE).readlink() == tmp_path / "given"
    await host.close(ClosePool(pool=ONE))
    assert not (tmp_path / "state/pools" / ONE).is_symlink()


async def test_the_target_ends_with_the_last_pool_that_needs_it(tmp_path: Path, make_pools: MakePools) -> None:
    exporter = FakeExporter()
    host = make_pools(exporter=exporter)
    for pool, export in ((ONE, ExportKind.ISCSI), (TWO, ExportKind.NONE)):
        await host.open(OpenPool(pool=pool, driver=PoolDriverName.DIR, path=str(tmp_path / pool), export=export))
    await exporter.check()
    await host.close(ClosePool(pool=ONE))
    with pytest.raises(UnavailableError, match="not started"):
        await exporter.check()
    await host.check()
    again = OpenPool(pool=ONE, driver=PoolDriverName.DIR, path=str(tmp_path / ONE), export=ExportKind.ISCSI)
    await host.open(again)
    assert not await exporter.check()


async def test_a_folder_is_one_pools_whatever_way_leads_there(tmp_path: Path, make_pools: MakePools) -> None:
    """Links and `..` are resolved where they are; the first pool may even be one whose folder is lost."""
    host = make_pools()

    def wish(pool: str, path: Path | str) -> OpenPool:
        return OpenPool(pool=PoolId(pool), driver=PoolDriverName.DIR, path=str(path), export=ExportKind.NONE)

    (tmp_path / "srv").mkdir()
    await host.open(wish(ONE, tmp_path / "srv/pool"))
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
            await host.open(wish(TWO, path))
        assert (caught.value.info.field, caught.value.info.value) == ("spec.path", str(path))
        assert caught.value.info.remedy
    shutil.rmtree(tmp_path / "srv/pool")
    with pytest.raises(ConflictError):
        await host.open(wish(TWO, tmp_path / "link"))
    # Beside it is another place, and the same pool may be told again.
    await host.open(wish(TWO, tmp_path / "parent/other"))
    await host.open(wish(TWO, tmp_path / "parent/other"))
    assert set(await host.statuses()) == {ONE, TWO}


async def test_two_pools_asked_for_at_once_are_not_made_in_one_folder(tmp_path: Path, make_pools: MakePools) -> None:
    host = make_pools()
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    wishes = [
        OpenPool(pool=pool, driver=PoolDriverName.DIR, path=str(tmp_path / name), export=ExportKind.NONE)
        for pool, name in ((ONE, "pool"), (TWO, "link"))
    ]
    ended = await asyncio.gather(*(host.open(wish) for wish in wishes), return_exceptions=True)
    assert sorted(isinstance(one, ConflictError) for one in ended) == [False, True]
