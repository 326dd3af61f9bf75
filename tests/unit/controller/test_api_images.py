"""Images at the API: wrong URLs and sums are refused, credentials are shown to nobody, what is copied stays."""

from __future__ import annotations

import json

import pytest

from serai.schema.image import ImageKind
from serai.schema.volume import VolumeState

from .conftest import GIB, World

SHA256 = "a" * 64
SECRET = "geheim99"


def url_of(url: str) -> dict[str, object]:
    return {"name": "i", "spec": {"source": "url", "url": url, "sha256": SHA256}}


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///x", "ftp://x", "http://[::1", "file:///etc/passwd", "http://a b/x", "http://x:99999/"],
)
async def test_what_is_no_url_makes_nothing(world: World, url: str) -> None:
    error = await world.refused("POST", "/v1/images", url_of(url))
    assert (error["status"], error["field"], error["value"]) == (422, "spec.url", url)
    assert (await world.http.get("/v1/images/i")).status_code == 404


@pytest.mark.parametrize("sha256", ["12ab", "g" * 64, "0" * 65, "0" * 64 + "\n"])
async def test_what_is_no_sum_makes_nothing(world: World, sha256: str) -> None:
    for source in ({"source": "url", "url": "http://x/y"}, {"source": "upload"}):
        error = await world.refused("POST", "/v1/images", {"name": "i", "spec": {**source, "sha256": sha256}})
        assert (error["status"], error["field"], error["value"]) == (422, "spec.sha256", sha256)
    assert (await world.http.get("/v1/images/i")).status_code == 404


async def test_credentials_are_shown_to_nobody_and_kept_for_the_job(world: World) -> None:
    url = f"https://me:{SECRET}@images.example/disk.raw?sig={SECRET}"
    job = await world.done("POST", "/v1/images", url_of(url))
    image = await world.ok("GET", "/v1/images/i")
    assert image["spec"]["url"] == "https://***@images.example/disk.raw?sig=***"
    for path in ("/v1/images", f"/v1/jobs/{job.id}", "/v1/jobs", "/v1/events"):
        assert SECRET not in json.dumps(await world.ok("GET", path)), path
    async with world.store.read() as view:
        assert await view.secrets.get(f"image/{image['id']}", "url") == url


async def test_a_url_without_credentials_is_kept_nowhere_else(world: World) -> None:
    await world.done("POST", "/v1/images", url_of("http://x/y"))
    image = await world.ok("GET", "/v1/images/i")
    async with world.store.read() as view:
        assert await view.secrets.get(f"image/{image['id']}", "url") is None


@pytest.mark.parametrize("spec", [{"source": "upload", "sha256": SHA256}, {"source": "build", "recipe": "tiny"}])
async def test_a_refused_url_is_shown_without_credentials(world: World, spec: dict[str, str]) -> None:
    url = f"https://me:{SECRET}@x/y"
    error = await world.refused("POST", "/v1/images", {"name": "i", "spec": {**spec, "url": url}})
    assert error["field"] == "spec.url"
    assert SECRET not in json.dumps(error)


async def test_an_image_is_not_deleted_while_it_is_copied(world: World) -> None:
    await world.image("big", ImageKind.DISK)
    await world.done("POST", "/v1/volumes", {"name": "v", "spec": {"pool": "shared0", "size": 4 * GIB, "image": "big"}})
    # The workflows here do nothing, so that it is still being made.
    error = await world.refused("DELETE", "/v1/images/big")
    assert (error["status"], error["field"], error["value"]) == (409, "image", "big")
    assert "volume v" in error["message"]
    async with world.store.transaction() as tx:
        await tx.volumes.update_status((await tx.volumes.find("v")).id, state=VolumeState.READY)
    await world.ok("DELETE", "/v1/images/big", status=202)


async def test_nothing_is_made_from_an_image_that_is_being_deleted(world: World) -> None:
    await world.image("big", ImageKind.DISK)
    await world.engine.stop()  # the job stays at work
    await world.ok("DELETE", "/v1/images/big", status=202)
    spec = {"pool": "shared0", "size": 4 * GIB, "image": "big"}
    error = await world.refused("POST", "/v1/volumes", {"name": "v", "spec": spec})
    assert (error["status"], "big is being deleted" in error["message"]) == (409, True)
    vm = {"name": "web1", "spec": {"image": "big", "memory": GIB, "disks": [{"pool": "shared0"}]}}
    assert (await world.refused("POST", "/v1/vms", vm))["status"] == 409
