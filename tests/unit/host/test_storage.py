"""A host's pools, on real folders: what goes wrong with one stays its own."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from serai.drivers.storage.base import PoolDriver
from serai.drivers.storage.directory import DirectoryPool
from serai.host.journal import Journal
from serai.host.records import Records
from serai.host.storage import HostStorage
from serai.schema.errors import HostError, NotFoundError
from serai.schema.messages import PoolOpen, VolumeDrop, VolumeMake
from serai.schema.volume import ExportKind, PoolDriverName

ONE, TWO = "1" * 12, "2" * 12


def storage(records: Records) -> HostStorage:
    def driver(pool: PoolOpen) -> PoolDriver:
        return DirectoryPool(Path(pool.path))

    def image(name: str) -> tuple[Path, str]:
        raise AssertionError(name)

    return HostStorage(records=records, exporter=None, portal="", open_driver=driver, image_disk=image)


def nothing(_what: str, _part: float | None) -> None:
    """Progress that nobody wants to see."""


async def test_a_lost_folder_is_told_and_the_other_pools_live(tmp_path: Path) -> None:
    """Also after a restart: no empty folder takes the place of one that is not mounted."""
    journal = Journal.open(tmp_path / "journal")
    records = Records(journal)
    host = storage(records)
    for pool, name in ((ONE, "one"), (TWO, "two")):
        path = str(tmp_path / name)
        await host.open_pool(PoolOpen(pool=pool, driver=PoolDriverName.DIR, path=path, export=ExportKind.NONE))
    await asyncio.to_thread(shutil.move, tmp_path / "one", tmp_path / "away")
    for each in (host, again := storage(records)):
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
            await each.drop(VolumeDrop(pool=ONE, volume="0" * 12))
    (tmp_path / "one").rmdir()
    await asyncio.to_thread(shutil.move, tmp_path / "away", tmp_path / "one")
    assert (await again.statuses())[ONE].state == "ready"
    await asyncio.to_thread(shutil.rmtree, tmp_path / "one")
    with pytest.raises(HostError, match="Mount its file system"):
        await again.make(VolumeMake(pool=ONE, volume="0" * 12, size=1 << 20), nothing)
    journal.close()
