"""The same calls over https and wss, and a server that is not who it says."""

from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.support.fake_api import FakeApi

from serai.client.console import console
from serai.client.context import Context
from serai.client.http import Client
from serai.lib.pki import CertificateAuthority
from serai.schema.errors import UnavailableError


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[FakeApi, Path]]:
    authority = CertificateAuthority.create(tmp_path / "ca")
    tls = authority.issue("api", dns=["localhost"], ips=["127.0.0.1"], dir=tmp_path / "api")
    with FakeApi(tmp_path / "unused", tls=tls) as api:
        yield api, tls.ca


async def test_calls_events_and_consoles(served: tuple[FakeApi, Path]) -> None:
    api, ca = served
    api.add("vm", "web1", {})
    api.emit("vm.state", "vm/web1")
    async with Client(Context(url=api.url, ca=ca)) as client:
        assert (await client.call("vm.show", "web1")).name == "web1"
        async with aclosing(client.events(0)) as events:
            assert (await anext(events)).seq == 1
        async with console(client, "web1") as joined:
            assert await joined.recv() == b"login: "


async def test_a_server_of_another_ca_is_not_talked_to(served: tuple[FakeApi, Path], tmp_path: Path) -> None:
    api, _ = served
    other = CertificateAuthority.create(tmp_path / "other").issue("x", dns=[], ips=[], dir=tmp_path / "x")
    async with Client(Context(url=api.url, ca=other.ca)) as client:
        with pytest.raises(UnavailableError, match="CERTIFICATE"):
            await client.call("vm.list")
        with pytest.raises(UnavailableError, match="CERTIFICATE"):
            async with console(client, "web1"):
                pass
    assert api.requests == []
