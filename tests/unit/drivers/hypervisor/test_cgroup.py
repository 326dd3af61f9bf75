"""Control groups: v2, v1, or none, told apart by what is mounted."""

from __future__ import annotations

from pathlib import Path

from serai.drivers.hypervisor.cgroup import Hierarchies, ability, hierarchies, join, remove


def test_none(tmp_path: Path) -> None:
    assert hierarchies(tmp_path) == Hierarchies(0, ())
    assert join(1, "serai", "vm", hierarchies(tmp_path)) == []


def test_v2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    assert hierarchies(tmp_path) == Hierarchies(2, (tmp_path,))


def test_v1_hybrid(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "unified"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    assert hierarchies(tmp_path) == Hierarchies(1, (tmp_path / "cpu,cpuacct", tmp_path / "memory"))


def test_v1_with_two_for_the_processor(tmp_path: Path) -> None:
    for name in ("cpu", "cpuacct", "pids"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    assert hierarchies(tmp_path) == Hierarchies(1, tuple(tmp_path / name for name in ("cpu", "cpuacct", "pids")))


def test_join_and_remove(tmp_path: Path) -> None:
    groups = join(42, "serai", "vm", Hierarchies(2, (tmp_path,)))
    assert groups == [tmp_path / "serai" / "vm"]
    assert (groups[0] / "cgroup.procs").read_text() == "42"
    # In a real hierarchy the files go with the folder.
    (groups[0] / "cgroup.procs").unlink()
    remove(groups)
    assert not (tmp_path / "serai").exists()
    remove(groups)


def test_a_refusal_costs_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert join(42, "serai", "vm", Hierarchies(1, (blocked, tmp_path))) == [tmp_path / "serai" / "vm"]


def test_the_ability_says_which_or_what_would_help(tmp_path: Path) -> None:
    none = ability(Hierarchies(0, ()))
    assert (none.found, none.required) == (False, False)
    assert "agent's own group" in none.detail
    assert none.remedy
    assert ability(Hierarchies(2, (tmp_path,))).detail.endswith(": v2")
    for name in ("memory", "pids"):
        (tmp_path / name).mkdir()
    first = ability(Hierarchies(1, (tmp_path / "memory", tmp_path / "pids")))
    assert first.detail.endswith(": v1 (memory, pids)")
    assert not list(tmp_path.glob("*/*")), "what was tried is gone"


def test_a_hierarchy_in_which_no_group_can_be_made_is_none(tmp_path: Path) -> None:
    found = ability(Hierarchies(2, (tmp_path / "read-only",)))
    assert not found.found
    assert "no group can be made" in found.detail
    assert found.remedy
