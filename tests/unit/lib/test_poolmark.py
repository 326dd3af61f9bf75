"""The mark of a pool's folder, and what is taken away by it."""

from pathlib import Path

from serai.lib import poolmark
from serai.lib.poolmark import Mark

POOL, OTHER = "1" * 12, "2" * 12


def test_a_mark_says_whose_the_folder_is(tmp_path: Path) -> None:
    assert poolmark.read(tmp_path / "none") is None
    assert poolmark.read(tmp_path) is None
    (tmp_path / poolmark.NAME).touch()
    assert poolmark.read(tmp_path) == Mark("", made=False)
    poolmark.put(tmp_path, POOL, made=False)
    assert poolmark.read(tmp_path) == Mark(POOL, made=False)
    poolmark.put(tmp_path, OTHER, made=True)
    assert poolmark.read(tmp_path) == Mark(POOL, made=False)
    assert [file.name for file in tmp_path.iterdir()] == [poolmark.NAME]


def test_only_what_the_pool_made_is_taken_away(tmp_path: Path) -> None:
    for name, made in (("made", True), ("given", False), ("used", True)):
        folder = tmp_path / name
        folder.mkdir()
        poolmark.put(folder, POOL, made=made)
        for file in ("0123456789ab.raw", ".serai-new-0123456789ab-00"):
            (folder / file).touch()
    (tmp_path / "used/notes.raw").touch()
    for name in ("made", "given", "used"):
        poolmark.purge(tmp_path / name, OTHER)
        assert (tmp_path / name / "0123456789ab.raw").exists()
        for _ in range(2):
            poolmark.purge(tmp_path / name, POOL)
    assert not (tmp_path / "made").exists()
    assert list((tmp_path / "given").iterdir()) == []
    assert [file.name for file in (tmp_path / "used").iterdir()] == ["notes.raw"]


def test_a_mark_that_is_anybodys_takes_nothing_away(tmp_path: Path) -> None:
    for name in (poolmark.NAME, "0123456789ab.raw"):
        (tmp_path / name).touch()
    poolmark.purge(tmp_path, POOL)
    assert (tmp_path / "0123456789ab.raw").exists()
