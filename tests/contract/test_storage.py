"""What every pool and every exporter does, the fake ones like the real ones."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
from pydantic import SecretStr
from tests.support.initiator import check_access
from tests.support.iscsi import free_portal

from serai.drivers.storage.base import Exporter, PoolDriver
from serai.drivers.storage.directory import DirectoryPool
from serai.drivers.storage.fake import FakeExporter, FakePool
from serai.drivers.storage.iscsi import TgtExporter
from serai.lib.ids import new_id
from serai.lib.paths import HostPaths
from serai.lib.process import run
from serai.schema.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    SeraiError,
    StaleError,
    TakenError,
    UnavailableError,
)
from serai.schema.ids import HostName, VmId, VolumeId
from serai.schema.launch import Admission, IscsiDisk

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


class Lab(Protocol):
    """An exporter together with an initiator that can try it."""

    exporter: Exporter

    async def opens(self, volume_id: str, admission: Admission) -> bool: ...
    async def kill_target(self) -> None: ...


class FakeLab:
    def __init__(self) -> None:
        self._fake = FakeExporter()
        self.exporter: Exporter = self._fake

    async def opens(self, volume_id: str, admission: Admission) -> bool:
        try:
            self._fake.login(volume_id, admission)
        except SeraiError:
            return False
        return True

    async def kill_target(self) -> None:
        self._fake.crash()


class TgtLab:
    def __init__(self, folder: Path) -> None:
        self._paths = HostPaths(folder / "state", folder / "run")
        self._tgt = TgtExporter(self._paths, *free_portal())
        self.exporter: Exporter = self._tgt

    async def opens(self, volume_id: str, admission: Admission) -> bool:
        disk = IscsiDisk(
            volume=VolumeId(volume_id),
            portal=self._tgt.portal,
            target=f"iqn.2026-01.io.serai:vol.{volume_id}",
            lun=1,
            initiator=admission.initiator,
            user=admission.user,
            password=admission.password,
        )
        try:
            await check_access(disk)
        except UnavailableError:
            return False
        return True

    async def kill_target(self) -> None:
        os.kill(int((self._paths.tgtd / "tgtd.pid").read_text()), 9)


@pytest.fixture(params=["fake", "tgt"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    made: Lab = FakeLab() if request.param == "fake" else TgtLab(tmp_path)
    await made.exporter.start()
    try:
        yield made
    finally:
        await made.exporter.stop()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    file = tmp_path / "volume.raw"
    file.write_bytes(bytes(MIB))
    return file


def admission(name: str, epoch: int = 1, secret: str = "correct-horse-battery", *, host: str = "h1") -> Admission:
    return Admission(
        vm=VmId(name * 12),
        epoch=epoch,
        host=HostName(host),
        initiator=f"iqn.2026-01.io.serai:vm.{name}.{epoch}.{host}",
        user=f"vm-{name}-{epoch}-{host}",
        password=SecretStr(secret),
    )


async def test_only_the_admitted_get_in(lab: Lab, volume: Path) -> None:
    name, right = new_id(), admission("a")
    export = await lab.exporter.export(name, volume)
    assert (export.target_iqn, export.lun) == (f"iqn.2026-01.io.serai:vol.{name}", 1)
    assert await lab.exporter.export(name, volume) == export
    assert not await lab.opens(name, right)
    await lab.exporter.admit(name, right)
    await lab.exporter.admit(name, right)
    assert await lab.opens(name, right)
    assert not await lab.opens(name, admission("b"))
    assert not await lab.opens(name, admission("a", secret="wrong-horse-battery"))


async def test_a_new_secret_replaces_the_old(lab: Lab, volume: Path) -> None:
    name, old, new = new_id(), admission("a"), admission("a", secret="another-secret-of-it")
    await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, old)
    await lab.exporter.admit(name, new)
    assert not await lab.opens(name, old)
    assert await lab.opens(name, new)


async def test_the_refused_stay_out_and_the_others_in(lab: Lab, volume: Path) -> None:
    name, epochs = new_id(), [admission("a", epoch) for epoch in (1, 2, 3)]
    await lab.exporter.export(name, volume)
    for each in epochs:
        await lab.exporter.admit(name, each)
    for gone, each in enumerate(epochs):
        await lab.exporter.refuse(name, each.vm, each.epoch)
        await lab.exporter.refuse(name, each.vm, each.epoch)
        assert [await lab.opens(name, other) for other in epochs] == [index > gone for index in range(3)]


async def test_an_epoch_is_admitted_for_one_host(lab: Lab, volume: Path) -> None:
    name, right, again = new_id(), admission("a", 3, host="h3"), admission("a", 3, host="h1")
    await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, right)
    for _ in range(2):
        with pytest.raises(TakenError, match="h3") as caught:
            await lab.exporter.admit(name, again)
        assert (caught.value.info.field, caught.value.info.value) == ("epoch", "3")
    await lab.exporter.admit(name, right)
    assert await lab.opens(name, right)
    assert not await lab.opens(name, again)
    await lab.kill_target()
    await lab.exporter.check()
    for stale, known in ((again, "3"), (admission("a", 2, host="h1"), "3"), (admission("a", 2, host="h3"), "3")):
        with pytest.raises(TakenError) as caught:
            await lab.exporter.admit(name, stale)
        assert caught.value.info.value == known


async def test_what_was_refused_is_never_admitted(lab: Lab, volume: Path) -> None:
    name, right = new_id(), admission("a", 2)
    await lab.exporter.export(name, volume)
    await lab.exporter.refuse(name, right.vm, 2)
    await lab.exporter.refuse(name, right.vm, 1)
    for epoch in (1, 2):
        for host in ("h1", "h2"):
            with pytest.raises(StaleError) as caught:
                await lab.exporter.admit(name, admission("a", epoch, host=host))
            assert not isinstance(caught.value, TakenError)
            assert (caught.value.info.field, caught.value.info.value) == ("epoch", "2")
    await lab.exporter.admit(name, admission("a", 3))
    assert await lab.opens(name, admission("a", 3))


async def test_a_move_has_both_ends_admitted_until_one_of_them_is_refused(lab: Lab, volume: Path) -> None:
    name, source, to = new_id(), admission("a", 2), admission("a", 3, host="h2")
    await lab.exporter.export(name, volume)
    for right in (source, to, source, to):
        await lab.exporter.admit(name, right)
    assert [await lab.opens(name, right) for right in (source, to)] == [True, True]
    await lab.exporter.refuse(name, source.vm, source.epoch)
    assert [await lab.opens(name, right) for right in (source, to)] == [False, True]
    await lab.exporter.admit(name, to)
    # The next move comes to nothing: its epoch alone is refused.
    back = admission("a", 4)
    await lab.exporter.admit(name, back)
    await lab.exporter.refuse(name, back.vm, back.epoch, HostName("h3"))
    assert [await lab.opens(name, right) for right in (to, back)] == [True, True]
    await lab.exporter.refuse(name, back.vm, back.epoch, back.host)
    assert [await lab.opens(name, right) for right in (to, back)] == [True, False]
    await lab.exporter.admit(name, to)
    with pytest.raises(StaleError):
        await lab.exporter.admit(name, back)


async def test_a_vm_is_not_hindered_by_another_ones_epochs(lab: Lab, volume: Path) -> None:
    name, first, second = new_id(), admission("a", 5), admission("b", 1, host="h2")
    await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, first)
    await lab.exporter.admit(name, second)
    await lab.exporter.refuse(name, first.vm, 5)
    assert [await lab.opens(name, right) for right in (first, second)] == [False, True]
    await lab.exporter.admit(name, second)
    await lab.exporter.admit(name, admission("a", 6))
    await lab.exporter.unexport(name)
    await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, first)


async def test_a_dead_target_comes_back_with_the_same_rights(lab: Lab, volume: Path) -> None:
    name, stays, goes = new_id(), admission("a"), admission("b")
    export = await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, goes)
    await lab.exporter.admit(name, stays)
    await lab.exporter.refuse(name, goes.vm, goes.epoch)
    assert not await lab.exporter.check()
    await lab.kill_target()
    assert not await lab.opens(name, stays)
    assert await lab.exporter.check()
    assert await lab.opens(name, stays)
    assert not await lab.opens(name, goes)
    assert await lab.exporter.export(name, volume) == export


async def test_start_may_be_repeated(lab: Lab, volume: Path) -> None:
    name, right = new_id(), admission("a")
    await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, right)
    await lab.exporter.start()
    assert await lab.opens(name, right)
    await lab.kill_target()
    await lab.exporter.start()
    assert await lab.opens(name, right)


async def test_stop_keeps_the_record(lab: Lab, volume: Path) -> None:
    name, right = new_id(), admission("a")
    await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, right)
    await lab.exporter.stop()
    assert not await lab.opens(name, right)
    with pytest.raises(UnavailableError):
        await lab.exporter.check()
    await lab.exporter.start()
    assert await lab.opens(name, right)


async def test_unexport_ends_all(lab: Lab, volume: Path) -> None:
    name, right = new_id(), admission("a")
    await lab.exporter.export(name, volume)
    await lab.exporter.admit(name, right)
    await lab.exporter.unexport(name)
    await lab.exporter.unexport(name)
    assert not await lab.opens(name, right)
    for attempt in (
        lab.exporter.admit(name, right),
        lab.exporter.refuse(name, right.vm, right.epoch),
        lab.exporter.sessions(name),
        lab.exporter.grow(name),
    ):
        with pytest.raises(NotFoundError):
            await attempt
    await lab.exporter.export(name, volume)
    assert not await lab.opens(name, right)


async def test_a_volume_is_exported_from_one_path(lab: Lab, volume: Path, tmp_path: Path) -> None:
    name = new_id()
    await lab.exporter.export(name, volume)
    with pytest.raises(ConflictError):
        await lab.exporter.export(name, tmp_path / "other")


async def test_a_user_has_one_secret_and_one_initiator(lab: Lab, volume: Path) -> None:
    first, second = new_id(), new_id()
    await lab.exporter.export(first, volume)
    await lab.exporter.export(second, volume)
    right = admission("a")
    await lab.exporter.admit(first, right)
    await lab.exporter.admit(second, right)
    assert await lab.opens(first, right)
    assert await lab.opens(second, right)
    with pytest.raises(ConflictError):
        await lab.exporter.admit(second, admission("a", secret="another-secret-of-it"))
    with pytest.raises(ConflictError):
        await lab.exporter.admit(first, admission("b").model_copy(update={"user": right.user}))
    await lab.exporter.refuse(first, right.vm, right.epoch)
    assert not await lab.opens(first, right)
    assert await lab.opens(second, right)


@pytest.mark.parametrize(
    "change",
    [
        {"initiator": "iqn.2026-01.io.serai:vm,user=root"},
        {"initiator": "vm"},
        {"user": "a,password=x"},
        {"password": SecretStr("short")},
        {"password": SecretStr("with,comma,and,more")},
    ],
)
async def test_what_could_break_out_of_a_request_is_refused(lab: Lab, volume: Path, change: dict[str, object]) -> None:
    name = new_id()
    await lab.exporter.export(name, volume)
    with pytest.raises(InvalidError) as caught:
        await lab.exporter.admit(name, admission("a").model_copy(update=change))
    assert caught.value.info.field in change
    if "password" in change:
        assert caught.value.info.value is None


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
