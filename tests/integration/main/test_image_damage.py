"""Damaged copies of images on the standing lab, and imports with credentials: real hosts, real guests, real servers."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.lab import Lab

from serai.lab import topology
from serai.lab.state import LabFolder
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.schema.job import JobState
from serai.schema.vm import VmState

from .cli import Serai, refused

SECRET = "geheim-99-token"
DATA = b"some disk".ljust(1 << 20, b"\0")
SHA256 = hashlib.sha256(DATA).hexdigest()


def copy_on(lab: Lab, host: str, image: str) -> Path:
    return LabFolder.of(lab.name).host(host) / "state" / "images" / image


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


async def test_a_vm_boots_and_moves_although_copies_of_its_kernel_are_damaged(lab: Lab) -> None:
    image = await lab.client.call("image.show", "tiny")
    cut, gone = copy_on(lab, "h1", image.id) / "initrd.img", copy_on(lab, "h2", image.id) / "vmlinuz"
    sums = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in (cut, gone)}
    with cut.open("r+b") as opened:
        opened.truncate(100_000)
    gone.unlink()
    vm = await lab.create(host="h1")
    job = await lab.done(await lab.migrate(vm.name, "h2"))
    assert job.state is JobState.DONE
    moved = await lab.vm(vm.name)
    assert (moved.status.state, moved.status.host) == (VmState.RUNNING, "h2")
    for file, sha256 in sums.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
        assert file.stat().st_mode & 0o777 == 0o444
    assert set((await lab.client.call("image.show", "tiny")).status.hosts) >= {"h1", "h2"}


async def test_a_disk_image_that_only_one_host_had_is_told_by_name(lab: Lab, serai: Serai, tmp_path: Path) -> None:
    name, vm, file = f"i{new_id()[:6]}", f"t{new_id()[:6]}", tmp_path / "disk.raw"
    file.write_bytes(DATA)
    await serai.well("image", "import", str(file), "--sha256", SHA256, "--name", name, "--host", "h1")
    image = (await serai.well("image", "show", name, "-o", "json")).json
    stored = copy_on(lab, "h1", image["id"]) / "disk.raw"
    assert stored.stat().st_mode & 0o777 == 0o444
    with stored.open("r+b") as opened:
        opened.write(b"ANOTHER")
    lab.vms.append(vm)
    create = ("vm", "create", vm, "--image", name, "--disk", "shared0:4M", "--memory", "64M", "--no-start")
    ran = await serai(*create)
    refused(ran, "spec.image", name, "Import it again under another name")
    assert f"disk.raw (sha256 {SHA256})" in ran.err
    assert not stored.parent.exists()
    # Nothing is left of the VM, and the next one is refused at once.
    assert vm not in (await serai.well("vm", "list", "-o", "name")).out
    refused(await serai(*create), "spec.image", name, "Create it anew.")
    await serai.well("image", "delete", name)


class Site:
    """A web server in the controller's namespace; it holds every answer until `may` is set."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.may = threading.Event()


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            here.may.wait(60)
            good = self.path == f"/disk.raw?token={SECRET}"
            self.send_response(200 if good else 403)
            self.send_header("Content-Length", str(len(DATA) if good else 0))
            self.end_headers()
            self.wfile.write(DATA if good else b"")

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
        here.may.set()
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()


async def test_an_import_with_a_token_survives_a_killed_controller_and_shows_it_nowhere(
    lab: Lab, serai: Serai, site: Site
) -> None:
    name, url = f"i{new_id()[:6]}", f"{site.url}/disk.raw?token={SECRET}"
    words = ("image", "import", url, "--sha256", SHA256, "--name", name, "--host", "h3")
    said = [await serai.well(*words, "--no-wait", "-o", "json")]
    async with asyncio.timeout(60):
        while not site.asked:
            await asyncio.sleep(0.05)
    await lab.kill("controller ctl")
    await lab.restart("controller ctl")
    await lab.online("h1", "h2", "h3")
    site.may.set()
    job = (await lab.client.call("job.list")).items
    (mine,) = [one for one in job if one.target == f"image/{name}"]
    await lab.done(mine)
    for shown in (("image", "show", name), ("job", "show", mine.id), ("event", "list"), ("image", "list")):
        said.append(await serai.well(*shown, "-o", "json"))
    assert said[1].json["spec"]["url"] == f"{site.url}/disk.raw?token=***"

    # One that fails says why, without it.
    said.append(await serai("image", "import", url + "x", "--sha256", SHA256, "--name", f"{name}-2", "--host", "h3"))
    refused(said[-1], "spec.url", f"{site.url}/disk.raw?token=***", "Try again later")
    assert all(SECRET not in ran.out + ran.err for ran in said)

    folder = LabFolder.of(lab.name)
    holds = await asyncio.to_thread(_files_with, folder, SECRET.encode())
    assert holds == []
    await serai.well("image", "delete", name)


def _files_with(folder: LabFolder, word: bytes) -> list[Path]:
    """Logs, hosts' journals and what else is kept; not the controller's database, for which it is a secret."""
    places = [folder.logs, folder.controller, *(folder.host(host) / "state" for host in ("h1", "h2", "h3"))]
    files = [file for place in places for file in place.rglob("*") if file.is_file() and ".db" not in file.name]
    return [file for file in files if file.stat().st_size < 64 << 20 and word in file.read_bytes()]
