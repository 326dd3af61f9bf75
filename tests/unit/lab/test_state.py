"""The files by which a lab is found again."""

import os
from pathlib import Path

import pytest

from serai.lab import state
from serai.lab.state import LabFolder, LabState, Phase, ProcessRecord
from serai.lib import namespace
from serai.lib.process import start_time
from serai.schema.errors import ConflictError, InvalidError, NotFoundError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's register and places in a folder of the test."""
    monkeypatch.setenv(state.ENV_PARENT, str(tmp_path / "labs"))
    monkeypatch.setattr(state, "REGISTER", tmp_path / "run" / "serai-lab")
    monkeypatch.setattr(state, "OWN_PATHS", {"state": tmp_path / "run" / "state"})
    monkeypatch.setattr(namespace, "NETNS", tmp_path / "run")
    (tmp_path / "run").mkdir()
    return tmp_path


def test_a_state_is_read_as_it_was_written(machine: Path) -> None:
    folder = LabFolder.of("one")
    assert folder.read() is None
    folder.path.mkdir(parents=True)
    written = LabState(name="one", hosts=2, link_rate=10**9, processes=[ProcessRecord(role="agent h1", pid=1, start=2)])
    folder.write(written)
    assert folder.read() == written
    assert (folder.path / "lab.json").stat().st_mode & 0o777 == 0o600


def test_only_a_lab_that_is_up_can_be_used(machine: Path) -> None:
    folder = LabFolder.of("one")
    with pytest.raises(NotFoundError, match="no such lab"):
        folder.load()
    folder.path.mkdir(parents=True)
    folder.write(LabState(name="one", hosts=1))
    with pytest.raises(NotFoundError, match="starting"):
        folder.load()
    folder.write(LabState(name="one", hosts=1, phase=Phase.UP))
    assert folder.load().hosts == 1


def test_a_name_that_leads_elsewhere_is_refused() -> None:
    with pytest.raises(InvalidError):
        LabFolder.of("../etc")


async def test_one_command_at_a_time(machine: Path) -> None:
    folder = LabFolder.of("one")
    async with state.locked(folder):
        with pytest.raises(ConflictError):
            async with state.locked(folder, timeout=0):
                pass
    async with state.locked(folder, timeout=0):
        pass


async def test_the_lock_is_on_the_folder_that_is_there_now(machine: Path) -> None:
    folder = LabFolder.of("one")
    async with state.locked(folder):
        folder.path.rmdir()
        async with state.locked(folder, timeout=0):
            assert folder.path.is_dir()


def test_the_last_lab_takes_the_register_and_the_places_along(machine: Path) -> None:
    one, two = LabFolder.of("one"), LabFolder.of("two")
    place = machine / "run" / "state"
    state.register(one)
    state.register(two)
    assert place.is_dir()
    assert [folder.name for folder in state.standing()] == ["one", "two"]
    state.unregister(one)
    assert place.is_dir()
    state.unregister(two)
    assert not place.exists()
    assert not state.REGISTER.exists()


def test_a_place_in_use_stays(machine: Path) -> None:
    state.register(LabFolder.of("one"))
    (machine / "run" / "state" / "file").touch()
    state.unregister(LabFolder.of("one"))
    assert (machine / "run" / "state" / "file").exists()


def test_a_place_that_was_there_before_stays(machine: Path) -> None:
    (machine / "run" / "state").mkdir()
    state.register(LabFolder.of("one"))
    state.unregister(LabFolder.of("one"))
    assert (machine / "run" / "state").is_dir()


def test_a_name_taken_in_another_parent_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.register(LabFolder.of("one"))
    monkeypatch.setenv(state.ENV_PARENT, str(machine / "others"))
    with pytest.raises(ConflictError):
        state.register(LabFolder.of("one"))
    state.unregister(LabFolder.of("one"))
    assert len(state.standing()) == 1


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    start = start_time(os.getpid())
    assert start is not None
    assert ProcessRecord(role="us", pid=os.getpid(), start=start).alive
    assert not ProcessRecord(role="us", pid=os.getpid(), start=start + 1).alive
    assert start_time(2**22 + 1) is None
