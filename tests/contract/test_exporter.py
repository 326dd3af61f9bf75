"""What every exporter does, the fake one like the real one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
from pydantic import SecretStr
from tests.support.initiator import check_access
from tests.support.iscsi import free_portal

from serai.drivers.storage.base import Exporter
from serai.drivers.storage.fake import FakeExporter
from serai.drivers.storage.iscsi import TgtExporter
from serai.lib.ids import new_id
from serai.lib.paths import HostPaths
from serai.schema.errors import (
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
