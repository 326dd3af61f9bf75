"""Where an upload's job and its bytes meet: the job says which host receives, the API relays the bytes there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from serai.lib.timeouts import time_limit
from serai.schema.ids import HostName, ImageId
from serai.schema.image import ImageManifest


class Uploads:
    """Those that jobs expect."""

    def __init__(self) -> None:
        self._expected: dict[ImageId, tuple[HostName, asyncio.Future[ImageManifest]]] = {}
        self._news = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def expected(self, image: ImageId, host: HostName) -> AsyncIterator[asyncio.Future[ImageManifest]]:
        """The job's side: `host` receives the content; the future has the manifest once it is in."""
        done: asyncio.Future[ImageManifest] = asyncio.get_running_loop().create_future()
        async with self._news:
            self._expected[image] = host, done
            self._news.notify_all()
        try:
            yield done
        finally:
            self._expected.pop(image, None)

    async def host(self, image: ImageId, timeout: float = 10.0) -> HostName:
        """The API's side: which host receives. Raises TimeoutError if no job expects this image."""
        async with time_limit(timeout), self._news:
            await self._news.wait_for(lambda: image in self._expected)
            return self._expected[image][0]

    def finish(self, image: ImageId, outcome: ImageManifest | Exception) -> None:
        """The API's side: the content is in, or it failed."""
        if image not in self._expected or (done := self._expected[image][1]).done():
            return
        if isinstance(outcome, Exception):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)
