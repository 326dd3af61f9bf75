"""The console: bytes both ways, and refusals as errors."""

from pathlib import Path

import pytest
from tests.support.fake_api import FakeApi

from serai.client.console import console
from serai.client.context import Context
from serai.client.http import Client
from serai.schema.errors import NotFoundError, UnavailableError


async def test_bytes_go_both_ways(api: FakeApi, client: Client) -> None:
    api.add("vm", "web1", {})
    async with console(client, "web1") as joined:
        assert await joined.recv() == b"login: "
        await joined.send(b"root\n")
        assert await joined.recv() == b"root\n"


async def test_an_unknown_vm_is_not_found(client: Client) -> None:
    with pytest.raises(NotFoundError, match="nope"):
        async with console(client, "nope"):
            pass


async def test_no_controller_is_unavailable(tmp_path: Path) -> None:
    async with Client(Context(socket=tmp_path / "absent")) as away:
        with pytest.raises(UnavailableError):
            async with console(away, "web1"):
                pass
