"""Calls of the REST table: models, pages, errors, tokens, uploads."""

from pathlib import Path

import pytest
from tests.support.fake_api import FakeApi

from serai.client.answers import raise_for
from serai.client.context import Context
from serai.client.http import Client, fill
from serai.schema.endpoints import ENDPOINTS
from serai.schema.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    SeraiError,
    UnauthorizedError,
    UnavailableError,
)
from serai.schema.job import JobState
from serai.schema.vm import Vm, VmCreate, VmEdit, VmSpec


async def test_a_call_answers_the_model_of_the_table(api: FakeApi, client: Client) -> None:
    api.add("vm", "web1", {"cpus": 2})
    vm = await client.call("vm.show", "web1")
    assert isinstance(vm, Vm)
    assert vm.spec.cpus == 2
    assert await client.call("vm.show", {"name": vm.id}) == vm


async def test_only_what_was_set_is_sent(api: FakeApi, client: Client) -> None:
    api.add("vm", "web1", {})
    await client.call("vm.edit", "web1", VmEdit(cpus=3))
    assert api.requests[-1] == ("vm.edit", "web1", {"cpus": 3})


async def test_every_endpoint_fills_its_path(client: Client) -> None:
    for endpoint in ENDPOINTS.values():
        assert "{" not in fill(endpoint.path, "x")
    assert fill("/v1/vms/{name}", "a/b?c") == "/v1/vms/a%2Fb%3Fc"


async def test_items_walks_all_pages(api: FakeApi, client: Client) -> None:
    for number in range(450):
        api.add("vm", f"v{number}", {})
    names = [vm.name async for vm in client.items("vm.list")]
    assert names == [f"v{number}" for number in range(450)]
    assert len([request for request in api.requests if request[0] == "vm.list"]) == 3
    assert len([vm async for vm in client.items("vm.list", limit=250)]) == 250


async def test_errors_come_back_as_the_same_classes(api: FakeApi, client: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.call("vm.show", "nope")
    assert (caught.value.info.field, caught.value.info.value) == ("vm", "nope")
    assert caught.value.info.remedy == "See: serai vm list."
    api.add("vm", "web1", {})
    with pytest.raises(ConflictError):
        await client.call("vm.create", body=VmCreate(name="web1", spec=VmSpec()))
    with pytest.raises(InvalidError) as refused:
        await client.call("vm.create", body={"name": "web2", "spec": {"cpus": 0}})
    assert refused.value.info.field == "spec.cpus"


async def test_no_body_is_none(api: FakeApi, client: Client) -> None:
    api.add("network", "lan", {"bridge": "br-lan", "subnet": "10.0.0.0/24"})
    assert await client.call("network.delete", "lan") is None


async def test_the_token_is_sent_from_its_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with FakeApi(tmp_path / "api.sock", "s3cret") as api:
        async with Client(Context(socket=api.socket)) as bare:
            with pytest.raises(UnauthorizedError):
                await bare.call("vm.list")
            with pytest.raises(UnauthorizedError):
                await anext(bare.events())
        async with Client(Context(socket=api.socket, token_file=token)) as known:
            assert (await known.call("vm.list")).items == []


async def test_a_controller_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with Client(Context(socket=tmp_path / "absent.sock")) as client:
        with pytest.raises(UnavailableError, match=r"absent\.sock"):
            await client.call("vm.list")
        with pytest.raises(UnavailableError):
            await anext(client.events())


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b"go away", UnauthorizedError),
        (503, b"<html>", UnavailableError),
        (404, b'{"detail": "Not Found"}', NotFoundError),
        (500, b"", SeraiError),
        (409, b'{"error": {"code": "conflict", "message": "busy"}}', ConflictError),
    ],
)
def test_answers_of_strangers_become_errors_too(status: int, body: bytes, kind: type[SeraiError]) -> None:
    with pytest.raises(kind):
        raise_for(status, body)


async def test_an_upload_sends_the_file_and_tells_how_much_went(api: FakeApi, client: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    file = tmp_path / "disk.raw"
    file.write_bytes(content)
    counts: list[int] = []
    await client.upload("cloud", file, counts.append)
    assert api.uploads["cloud"] == content
    assert sum(counts) == len(content)
    assert len(counts) > 1


async def test_a_job_runs_to_its_end(api: FakeApi, client: Client) -> None:
    job = await client.call("vm.create", body=VmCreate(name="web1", spec=VmSpec()))
    assert (await client.wait_job(job.id)).state is JobState.DONE
    assert "web1" in api.resources["vm"]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidError, match=r"ca\.pem"):
        Client(Context(url="https://127.0.0.1:1", ca=file))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_leads_to_no_other_path(name: str) -> None:
    """A client's library takes `..` away, with what is before it."""
    with pytest.raises(InvalidError, match="names nothing"):
        fill("/v1/vms/{name}", name)
