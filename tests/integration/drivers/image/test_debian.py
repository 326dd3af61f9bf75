"""The Debian image: made anew, it is the same bytes. A guest that boots from it: tests/integration/main."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.drivers.image.conftest import CACHE

from serai.drivers.image.base import read_manifest
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.mmdebstrap import DebianBuilder
from serai.schema.image import ImageManifest


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
async def test_two_builds_are_the_same_image(tmp_path: Path) -> None:
    async def build(name: str) -> ImageManifest:
        folder = tmp_path / name
        folder.mkdir()
        return await builder.build(folder, lambda _phase, _fraction: None)

    builder = DebianBuilder()
    other = read_manifest(await ensure_image(builder, CACHE))
    built = await build("one")
    if built.packages != other.packages:  # the mirror has got newer packages since that one was kept
        other = await build("two")
    assert built == other
