"""A fake API on a socket, and a client of it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.fake_api import FakeApi

from serai.client.context import Context
from serai.client.http import Client


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    with FakeApi(tmp_path / "api.sock") as served:
        yield served


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    async with Client(Context(socket=api.socket)) as connected:
        yield connected
