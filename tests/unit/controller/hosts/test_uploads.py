"""The bytes of an upload find the host that its job chose, and the job hears how it went."""

from __future__ import annotations

import asyncio

import pytest

from serai.controller.hosts.uploads import Uploads
from serai.schema.errors import InvalidError
from serai.schema.ids import HostName, ImageId
from serai.schema.image import ImageKind, ImageManifest

IMAGE, H1 = ImageId("a" * 12), HostName("h1")
MANIFEST = ImageManifest(name="own", kind=ImageKind.DISK, files=[])


async def test_bytes_that_come_first_wait_for_the_job() -> None:
    uploads = Uploads()
    asking = asyncio.create_task(uploads.host(IMAGE))
    await asyncio.sleep(0)
    async with uploads.expected(IMAGE, H1) as done:
        assert await asking == "h1"
        uploads.finish(IMAGE, MANIFEST)
        uploads.finish(IMAGE, InvalidError("too late"))
        assert await done == MANIFEST


async def test_what_failed_is_raised_to_the_job() -> None:
    uploads = Uploads()
    async with uploads.expected(IMAGE, H1) as done:
        uploads.finish(IMAGE, InvalidError("the checksum differs"))
        with pytest.raises(InvalidError, match="checksum"):
            await done


async def test_what_no_job_expects_is_refused_and_ends_nowhere() -> None:
    uploads = Uploads()
    async with uploads.expected(IMAGE, H1):
        pass
    uploads.finish(IMAGE, MANIFEST)
    with pytest.raises(TimeoutError):
        await uploads.host(IMAGE, timeout=0.01)
