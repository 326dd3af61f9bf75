"""The Debian image: made anew, it is the same bytes. A guest that boots from it: tests/integration/main."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.drivers.image.conftest import CACHE

from serai.drivers.image.base import read_manifest
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.mmdebstrap import DebianBuilder


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_builds_are_the_same_image(tmp_path: Path) -> None:
    builder = DebianBuilder()
    kept = read_manifest(await ensure_image(builder, CACHE))
    built = await builder.build(tmp_path, lambda _phase, _fraction: None)
    assert built == kept
