"""`serai image` on the standing lab: files and URLs, raw and qcow2, right and wrong sums; what is left on the host."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lab import topology
from serai.lab.state import LabFolder
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.schema.errors import InvalidError, NotFoundError
from serai.schema.ids import HostName
from serai.schema.image import ImageCreate, ImageSource, ImageSpec
from serai.schema.job import JobState

from .cli import Serai, refused

SIZE = 3 << 20
ZEROS = "0" * 64


def content() -> bytes:
    """A disk's content: some of it, the rest zeros, so that qcow2 is shorter than raw."""
    return b"".join(hashlib.sha256(bytes([n])).digest() * 128 for n in range(64)) + bytes(SIZE - 64 * 32 * 128)


def sum_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def on_host(lab: Lab, host: str) -> set[str]:
    """What the host's image folder holds, half-made things included."""
    return {entry.name for entry in (LabFolder.of(lab.name).host(host) / "state" / "images").iterdir()}


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.fixture
async def disk(tmp_path: Path) -> dict[str, Path]:
    """The same disk as raw and as qcow2."""
    raw, qcow2 = tmp_path / "some disk.raw", tmp_path / "some-disk.qcow2"
    raw.write_bytes(content())
    await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)])
    return {"raw": raw, "qcow2": qcow2}


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


class Site:
    """A small web server in the controller's namespace: hosts reach it over the lab's LAN."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = ""


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            body = here.files.get(self.path.removesuffix("?cut"))
            if body is None:
                self.send_error(503 if self.path == "/broken.raw" else 404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path.endswith("?cut") else body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Nobody reads it."""

    plan = topology.plan(lab.name, 3)
    address = str(plan.address("ctl"))
    listening = await namespace.in_netns(plan.netns("ctl"), lambda: socket.create_server((address, 0)))
    server = ThreadingHTTPServer((address, 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    here.url = f"http://{address}:{listening.getsockname()[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield here
    finally:
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_a_file_is_imported_whole_and_deleted_whole(
    lab: Lab, serai: Serai, disk: dict[str, Path], kind: str
) -> None:
    name = f"i{new_id()[:6]}"
    before = on_host(lab, "h2")
    ran = await serai(
        "image", "import", str(disk[kind]), "--sha256", sum_of(disk[kind]), "--name", name, "--host", "h2"
    )
    assert (ran.code, ran.out) == (0, f"image {name} imported: ready\n"), ran.err
    image = (await serai("image", "show", name, "-o", "json")).json
    manifest = image["status"]["manifest"]
    assert (image["status"]["state"], image["status"]["hosts"]) == ("ready", ["h2"])
    assert (manifest["kind"], manifest["format"], manifest["virtual_size"]) == ("disk", kind, SIZE)
    (row,) = [line.split() for line in (await serai("image", "list")).out.splitlines() if line.startswith(name)]
    assert row[1:] == ["ready", "disk", "3M", "upload", "h2"]
    assert on_host(lab, "h2") - before == {image["id"]}
    stored = LabFolder.of(lab.name).host("h2") / "state" / "images" / image["id"] / f"disk.{kind}"
    assert stored.read_bytes() == disk[kind].read_bytes()
    again = await serai("image", "import", str(disk[kind]), "--sha256", sum_of(disk[kind]), "--name", name)
    refused(again, "name", name, "Choose another name.")
    ran = await serai("image", "delete", name)
    assert (ran.code, ran.out) == (0, f"image {name} deleted\n"), ran.err
    refused(await serai("image", "show", name), "image", name, "serai image list")
    assert on_host(lab, "h2") == before


async def test_a_file_with_another_sum_is_not_even_sent(lab: Lab, serai: Serai, disk: dict[str, Path]) -> None:
    ran = await serai("image", "import", str(disk["raw"]), "--sha256", ZEROS)
    refused(ran, "sha256", ZEROS, "Get some disk.raw again, or give the right sum.")
    assert sum_of(disk["raw"]) in ran.err
    # The name that it would have had from its file's.
    assert "some-disk" not in (await serai("image", "list", "-o", "name")).out.split()
    ran = await serai("image", "import", str(disk["raw"]), "--sha256", "12ab")
    assert ran.code == 1
    ran = await serai("image", "import", "/no/such.raw", "--sha256", ZEROS)
    assert (ran.code, "there is no file /no/such.raw" in ran.err) == (2, True)
    ran = await serai("image", "import", str(disk["raw"]), "--sha256", ZEROS, "--name", "Not_A_Name")
    refused(ran, "name", "Not_A_Name", "Use lower-case letters")
    ran = await serai("image", "import", str(disk["raw"]))
    assert (ran.code, "--sha256" in ran.err) == (2, True)


async def test_a_file_that_arrives_otherwise_leaves_nothing_on_the_host(
    lab: Lab, serai: Serai, disk: dict[str, Path]
) -> None:
    """The sum is checked at the far end too: here by a client that does not look first."""
    before, name = on_host(lab, "h2"), f"i{new_id()[:6]}"
    spec = ImageSpec(source=ImageSource.UPLOAD, sha256=ZEROS)
    job = await lab.client.call("image.create", body=ImageCreate(name=name, spec=spec, host=HostName("h2")))
    with pytest.raises(InvalidError) as caught:
        await lab.client.upload(name, disk["raw"])
    assert (caught.value.info.field, caught.value.info.value) == ("spec.sha256", ZEROS)
    ran = await serai("job", "wait", job.id)
    refused(ran, "spec.sha256", ZEROS, "nothing was kept")
    ended = await lab.client.job(job.id)
    assert ended.state is JobState.FAILED
    with pytest.raises(NotFoundError):
        await lab.client.call("image.show", name)
    assert on_host(lab, "h2") == before


async def test_what_is_no_disk_image_is_refused(lab: Lab, serai: Serai, disk: dict[str, Path], tmp_path: Path) -> None:
    before = on_host(lab, "h2")
    page, cut, leaning = tmp_path / "page.qcow2", tmp_path / "cut.qcow2", tmp_path / "leaning.qcow2"
    page.write_text("<html>This is an error page of a download site.</html>")
    cut.write_bytes(disk["qcow2"].read_bytes()[: 200 << 10])
    await run(["qemu-img", "create", "-f", "qcow2", "-b", str(disk["raw"]), "-F", "raw", str(leaning)])
    for file, words in (
        (page, "the content is raw"),
        (cut, "Download it again"),
        (leaning, "Flatten it first"),
    ):
        ran = await serai("image", "import", str(file), "--sha256", sum_of(file), "--host", "h2")
        assert ran.code == 1, file
        assert words in ran.err, ran.err
        assert file.stem not in (await serai("image", "list", "-o", "name")).out.split()
    assert on_host(lab, "h2") == before


async def test_an_image_from_a_url(lab: Lab, serai: Serai, site: Site, disk: dict[str, Path]) -> None:
    site.files["/disk.qcow2"] = disk["qcow2"].read_bytes()
    before, name, url = on_host(lab, "h3"), f"i{new_id()[:6]}", f"{site.url}/disk.qcow2"
    ran = await serai("image", "import", url, "--sha256", ZEROS, "--name", name, "--host", "h3")
    refused(ran, "spec.sha256", ZEROS, "nothing was kept")
    assert sum_of(disk["qcow2"]) in ran.err
    assert name not in (await serai("image", "list", "-o", "name")).out.split()
    assert on_host(lab, "h3") == before

    ran = await serai("image", "import", url, "--sha256", sum_of(disk["qcow2"]), "--name", name, "--host", "h3")
    assert (ran.code, ran.out) == (0, f"image {name} imported: ready\n"), ran.err
    image = (await serai("image", "show", name, "-o", "json")).json
    assert (image["spec"]["url"], image["status"]["hosts"]) == (url, ["h3"])
    assert on_host(lab, "h3") - before == {image["id"]}
    assert (await serai("image", "delete", name)).code == 0
    assert on_host(lab, "h3") == before


async def test_a_url_that_does_not_give_the_image(lab: Lab, serai: Serai, site: Site, disk: dict[str, Path]) -> None:
    site.files["/disk.raw"] = disk["raw"].read_bytes()
    before = on_host(lab, "h3")
    for path, remedy in (
        ("/nothing.raw", "Look at the address"),
        ("/broken.raw", "Try again"),
        ("/disk.raw?cut", "Try again"),
    ):
        ran = await serai(
            *("image", "import", f"{site.url}{path}", "--sha256", sum_of(disk["raw"])),
            *("--name", "never", "--host", "h3"),
        )
        refused(ran, "spec.url", f"{site.url}{path}", remedy)
        assert path in site.asked
    refused(await serai("image", "show", "never"), "image", "never", "serai image list")
    assert on_host(lab, "h3") == before


async def test_an_image_in_use_stays(lab: Lab, serai: Serai, disk: dict[str, Path]) -> None:
    name, vm = f"i{new_id()[:6]}", f"t{new_id()[:6]}"
    ran = await serai("image", "import", str(disk["qcow2"]), "--sha256", sum_of(disk["qcow2"]), "--name", name)
    assert ran.code == 0, ran.err
    ran = await serai("volume", "create", vm, "--pool", "shared0", "--size", "2M", "--image", name)
    refused(ran, "spec.size", "2M", "Ask for 3M or more.")
    lab.vms.append(vm)
    ran = await serai("vm", "create", vm, "--image", name, "--disk", "shared0:4M", "--memory", "64M", "--no-start")
    assert ran.code == 0, ran.err
    pool = (await serai("pool", "show", "shared0", "-o", "json")).json
    volume = (await serai("volume", "list", "--vm", vm, "-o", "json")).json[0]
    folder = LabFolder.of(lab.name).host("h1")
    cloned = folder / "state" / Path(pool["status"]["path"]).relative_to("/var/lib/serai") / f"{volume['id']}.raw"
    assert cloned.read_bytes() == content().ljust(4 << 20, b"\0")
    refused(await serai("image", "delete", name), "image", name, "Delete these VMs first.")
    assert (await serai("vm", "delete", vm)).code == 0
    ran = await serai("image", "delete", name)
    assert ran.code == 0, ran.err


async def test_an_image_that_is_still_awaited_can_be_given_up(lab: Lab, serai: Serai) -> None:
    name = f"i{new_id()[:6]}"
    spec = ImageSpec(source=ImageSource.UPLOAD, sha256=ZEROS)
    job = await lab.client.call("image.create", body=ImageCreate(name=name, spec=spec, host=HostName("h2")))
    ran = await serai("image", "delete", name)
    refused(ran, "job", job.id, f"serai job cancel {job.id}")
    ran = await serai("vm", "create", f"t{new_id()[:6]}", "--image", name, "--disk", "shared0:4M", "--no-start")
    refused(ran, "spec.image", name, "Wait for its job to end.")
    ran = await serai("job", "cancel", job.id)
    assert (ran.code, f"serai job wait {job.id}" in ran.err) == (0, True), ran.err
    ran = await serai("job", "wait", job.id)
    assert (ran.code, "cancelled" in ran.err) == (1, True), ran.err
    assert (await lab.client.job(job.id)).state is JobState.CANCELLED
    refused(await serai("image", "show", name), "image", name, "serai image list")


async def test_an_upload_that_breaks_off_leaves_nothing(lab: Lab, serai: Serai, disk: dict[str, Path]) -> None:
    """As if `serai image import` were killed half-way."""
    before, name = on_host(lab, "h2"), f"i{new_id()[:6]}"
    spec = ImageSpec(source=ImageSource.UPLOAD, sha256=sum_of(disk["raw"]))
    job = await lab.client.call("image.create", body=ImageCreate(name=name, spec=spec, host=HostName("h2")))
    context = lab.client.context
    _, writer = await asyncio.open_unix_connection(str(context.socket))
    head = f"PUT /v1/images/{name}/content HTTP/1.1\r\nHost: serai\r\nAuthorization: Bearer {context.token()}\r\n"
    writer.write(f"{head}Content-Length: {SIZE}\r\n\r\n".encode() + disk["raw"].read_bytes()[: SIZE // 2])
    await writer.drain()
    await until(lambda: f".part-{job.target_id}" in on_host(lab, "h2"))
    writer.transport.abort()
    ran = await serai("job", "wait", job.id)
    assert (ran.code, "the upload broke off. Send it again." in ran.err) == (1, True), ran.err
    refused(await serai("image", "show", name), "image", name, "serai image list")
    await until(lambda: on_host(lab, "h2") == before)


async def test_a_full_pool_takes_no_half_of_an_image(lab: Lab, serai: Serai, tmp_path: Path) -> None:
    name, place, host = f"i{new_id()[:6]}", Path("/var/lib/serai/full"), "h3"
    dense = tmp_path / "dense.raw"
    dense.write_bytes(random.Random(1).randbytes(5 << 20))
    inside = namespace.enter_argv(None, LabFolder.of(lab.name).pin(host))
    await run([*inside, "mkdir", str(place)])
    await run([*inside, "mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "small", str(place)])
    try:
        await serai.well("image", "import", str(dense), "--sha256", sum_of(dense), "--name", name, "--host", host)
        await serai.well("pool", "create", name, "--host", host, "--path", str(place), "--export", "none")
        await serai.well("volume", "create", f"{name}-a", "--pool", name, "--size", "6M", "--image", name)
        # The controller may not have heard yet how little is left: then the host says it.
        ran = await serai("volume", "create", f"{name}-b", "--pool", name, "--size", "6M", "--image", name)
        assert (ran.code, ran.out) == (1, "")
        assert "(spec.size: 6M). Ask for less" in ran.err or "(size: 6291456). Delete volumes" in ran.err, ran.err
        refused(await serai("volume", "show", f"{name}-b"), "volume", f"{name}-b", "serai volume list")
        listed = await run([*inside, "ls", "-A", str(place)])
        volume = (await serai("volume", "show", f"{name}-a", "-o", "json")).json["id"]
        assert sorted(listed.text.split()) == [".serai-pool", f"{volume}.raw"]
        await serai.well("volume", "delete", f"{name}-a")
        await serai.well("pool", "delete", name)
        await serai.well("image", "delete", name)
    finally:
        await run([*inside, "umount", str(place)])
        await run([*inside, "rmdir", str(place)])
