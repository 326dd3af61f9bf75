"""What every image builder does, the fake like the real one.

The Debian guest takes minutes of the machine to build; its recipe is tried here, and itself when it boots.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.drivers.image.base import MANIFEST, ImageBuilder, read_manifest
from serai.drivers.image.fake import FakeBuilder
from serai.drivers.image.mmdebstrap import DebianBuilder
from serai.drivers.image.store import ImageStore
from serai.drivers.image.tiny import TinyBuilder
from serai.lib.ids import new_id
from serai.lib.streamfile import sha256_file

BUILDERS = [FakeBuilder, TinyBuilder]


@pytest.mark.parametrize("kind", [*BUILDERS, DebianBuilder])
async def test_a_recipe_is_a_stable_hash(kind: type[ImageBuilder]) -> None:
    builder = kind()
    recipe = await builder.recipe()
    assert len(recipe) == 64
    assert set(recipe) <= set("0123456789abcdef")
    assert await kind().recipe() == recipe
    assert builder.name.isalnum()


@pytest.mark.parametrize("kind", BUILDERS)
async def test_two_builds_are_the_same_image(kind: type[ImageBuilder], tmp_path: Path) -> None:
    builder = kind()
    seen: list[tuple[str, float | None]] = []
    digests = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        manifest = await builder.build(folder, lambda phase, fraction: seen.append((phase, fraction)))
        assert read_manifest(folder) == manifest
        assert (manifest.name, manifest.recipe) == (builder.name, await builder.recipe())
        # All that is there is listed, as it is.
        assert {path.name for path in folder.iterdir()} == {MANIFEST, *(row.name for row in manifest.files)}
        for row in manifest.files:
            assert (folder / row.name).stat().st_size == row.size
            assert await sha256_file(folder / row.name) == row.sha256
        digests.append({row.name: row.sha256 for row in manifest.files})
    assert digests[0] == digests[1]
    assert all(phase for phase, _ in seen)
    fractions = [fraction for _, fraction in seen[: len(seen) // 2] if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    # And the store takes it.
    store = ImageStore(tmp_path / "images")
    store.open()
    image = new_id()
    async with store.adding(image) as part:
        for path in (tmp_path / "one").iterdir():
            path.rename(part / path.name)
    assert store.manifest(image).recipe == await builder.recipe()
