"""The cache of built images: built once for all who ask, and nothing of a failed build stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serai.drivers.image.base import MANIFEST, Progress
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.fake import FakeBuilder
from serai.schema.errors import HostError
from serai.schema.image import ImageManifest


class SlowBuilder(FakeBuilder):
    """Builds when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.may = asyncio.Event()

    async def build(self, folder: Path, progress: Progress) -> ImageManifest:
        self.begun.set()
        await self.may.wait()
        return await super().build(folder, progress)


async def test_built_once(tmp_path: Path) -> None:
    builder = FakeBuilder()
    folder = await ensure_image(builder, tmp_path / "cache")
    assert await ensure_image(builder, tmp_path / "cache") == folder
    assert builder.builds == 1
    assert (folder / "disk.raw").read_bytes() == builder.content


async def test_another_recipe_is_another_image(tmp_path: Path) -> None:
    one = await ensure_image(FakeBuilder(b"1" * 512), tmp_path)
    two = await ensure_image(FakeBuilder(b"2" * 512), tmp_path)
    assert one != two
    assert (one / MANIFEST).exists()


async def test_two_at_once_build_once(tmp_path: Path) -> None:
    first, second = SlowBuilder(), FakeBuilder()
    said: list[str] = []
    waiting = asyncio.Event()

    def progress(phase: str, fraction: float | None) -> None:
        said.append(phase)
        waiting.set()

    building = asyncio.create_task(ensure_image(first, tmp_path))
    await first.begun.wait()
    other = asyncio.create_task(ensure_image(second, tmp_path, progress))
    await waiting.wait()
    first.may.set()
    assert await building == await other
    assert (first.builds, second.builds) == (1, 0)
    assert len(said) == 1
    assert "waiting" in said[0]


async def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    builder = FakeBuilder()
    builder.failure = HostError("the mirror is away")
    with pytest.raises(HostError):
        await ensure_image(builder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock-fake"]
    builder.failure = None
    await ensure_image(builder, tmp_path)


async def test_a_cancelled_build_leaves_nothing(tmp_path: Path) -> None:
    builder = SlowBuilder()
    building = asyncio.create_task(ensure_image(builder, tmp_path))
    await builder.begun.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert [path.name for path in tmp_path.iterdir()] == [".lock-fake"]


async def test_what_a_crash_left_is_no_image(tmp_path: Path) -> None:
    part = tmp_path / ".part-fake"
    part.mkdir()
    (part / "disk.raw").write_bytes(b"half")
    folder = await ensure_image(FakeBuilder(), tmp_path)
    assert not part.exists()
    assert (folder / MANIFEST).exists()
