"""Copies of images: a damaged one is replaced from where there is a sound one, or by making it anew; or it is told.

The hosts here answer as real ones do: a host without a sound copy of what a command needs says so by the same error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.integration.controller.conftest import FACTS, INCARNATION

from serai.app.controller import ControllerConfig, running, standard_extras
from serai.client.context import Context
from serai.client.http import Client
from serai.lib.bus import Message
from serai.lib.clock import SystemClock
from serai.lib.membus import MemBus
from serai.schema.commands import BY_NAME
from serai.schema.commands.base import AnyCommand
from serai.schema.commands.envelope import Reply, Request
from serai.schema.commands.host import HOST_INTRODUCE
from serai.schema.commands.image import IMAGE_CREATE, IMAGE_FETCH
from serai.schema.commands.migration import MIGRATION_PREPARE, MIGRATION_START, MigrationEndpoint, MigrationOutcome
from serai.schema.commands.pool import POOL_OPEN
from serai.schema.commands.vm import VM_START
from serai.schema.commands.volume import VOLUME_ADMIT, VOLUME_CREATE, VolumeExport
from serai.schema.encoding import encode, to_dict
from serai.schema.errors import InvalidError, NotFoundError, SeraiError
from serai.schema.ids import HostName
from serai.schema.image import Image, ImageFile, ImageKind, ImageManifest, ImageState
from serai.schema.job import Job, JobState
from serai.schema.reports import Introduction
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport, VmState
from serai.schema.volume import PoolStatus

SUM, SECRET = "a" * 64, "geheim99"
KERNEL = ImageManifest(name="tiny", kind=ImageKind.KERNEL, files=[ImageFile(name="vmlinuz", size=1, sha256=SUM)])
DISK = ImageManifest(
    name="disk",
    kind=ImageKind.DISK,
    files=[ImageFile(name="disk.raw", size=1, sha256=SUM)],
    format="raw",
    virtual_size=1 << 20,
)


class Fleet:
    """Hosts that have sound copies, damaged ones (`rotten`; the first use drops them), or lying ones (`lying`)."""

    def __init__(self, bus: MemBus) -> None:
        self.bus = bus
        self.sound: set[str] = set()
        self.lying: set[str] = set()
        self.asked: list[tuple[str, AnyCommand]] = []
        self.urls: list[str] = []
        self.hold_make = asyncio.Event()
        self.hold_make.set()
        self.made = asyncio.Event()
        self.manifest = KERNEL
        self._tickets: dict[str, str] = {}

    async def join(self, *hosts: str) -> None:
        for host in hosts:

            async def answer(message: Message, host: str = host) -> bytes:
                request = Request.model_validate_json(message.payload)
                command = BY_NAME[request.command]
                self.asked.append((host, command))
                try:
                    result = await self._answer(host, command, request.body)
                except SeraiError as error:
                    return encode(Reply(state="failed", error=error.info))
                return encode(Reply(state="done", result=None if result is None else to_dict(result)))

            await self.bus.subscribe(Subjects.host_command(host), answer)
            await self.bus.subscribe(Subjects.vm_command(host, "*"), answer)
            said = Introduction(host=HostName(host), incarnation=INCARNATION, facts=FACTS)
            await self.bus.request(Subjects.hello(host), encode(said), timeout=5)

    async def _answer(self, host: str, command: AnyCommand, body: dict[str, Any]) -> BaseModel | None:
        if command is HOST_INTRODUCE:
            return Introduction(host=HostName(host), incarnation=INCARNATION, facts=FACTS)
        if command is IMAGE_CREATE:
            self.urls.append(str(body["spec"]["url"]))
            self.made.set()
            await self.hold_make.wait()
            self.sound.add(host)
            return self.manifest
        if command is IMAGE_FETCH:
            source = str(body["server"]).removeprefix("host.")
            if source in self.lying:
                raise InvalidError("the file that arrived is not the one that was meant", field="sha256", value=SUM)
            self._need(source, str(body["image"]))
            self.sound.add(host)
            return None
        if command is POOL_OPEN:
            return PoolStatus(state="ready", path="/p", total=100 << 30, free=90 << 30)
        if command is VOLUME_ADMIT:
            return VolumeExport(portal="10.0.0.1:3260", target="t", lun=1)
        if command is VOLUME_CREATE and body["image"] is not None:
            self._need(host, body["image"])
        if command in (VM_START, MIGRATION_PREPARE):
            self._need(host, body["launch"]["boot"]["image"])
        if command is VM_START:
            now, vm = SystemClock().now(), body["launch"]["vm"]
            return VmReport(
                vm=vm, host=HostName(host), epoch=body["epoch"], state=VmState.RUNNING, since=now, sequence=1
            )
        if command is MIGRATION_PREPARE:
            return MigrationEndpoint(
                address="10.0.0.2", port=49152, tls_hostname="qemu.h2", journal=INCARNATION.journal
            )
        if command is MIGRATION_START:
            return MigrationOutcome(committed=True, total_s=1.0)
        return None

    def _need(self, host: str, image: str) -> None:
        if host not in self.sound:
            raise NotFoundError("this host's copy of the image was damaged (disk.raw)", field="image", value=image)


class World:
    def __init__(self, fleet: Fleet, client: Client) -> None:
        self.fleet = fleet
        self.client = client

    async def do(self, name: str, target: str | None = None, body: Any = None) -> Job:
        job = await self.client.call(name, target, body)
        return await asyncio.wait_for(self.client.wait_job(job.id), 20)

    async def well(self, name: str, target: str | None = None, body: Any = None) -> None:
        job = await self.do(name, target, body)
        assert job.state is JobState.DONE, job.error

    async def image(self, name: str = "i") -> Image:
        found: Image = await self.client.call("image.show", name)
        return found

    async def add(self, manifest: ImageManifest, source: dict[str, str], host: str = "h1") -> None:
        self.fleet.manifest = manifest
        await self.well("image.create", None, {"name": "i", "spec": source, "host": host})

    async def volume(self, name: str, host: str) -> Job:
        spec = {"pool": f"p-{host}", "size": "1M", "image": "i"}
        return await self.do("volume.create", None, {"name": name, "spec": spec})


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, bus: MemBus, fleet: Fleet, *hosts: str) -> AsyncIterator[World]:
    config = ControllerConfig(
        state=tmp_path / "state", listen=None, socket=tmp_path / "api.sock", token_file=tmp_path / "token"
    )
    async with (
        running(config, bus, standard_extras(None)),
        Client(Context(socket=config.socket, token_file=config.token_file)) as client,
    ):
        await fleet.join(*hosts)
        yield World(fleet, client)


@pytest.fixture
async def bus() -> AsyncIterator[MemBus]:
    made = MemBus()
    yield made
    await made.close()


@pytest.fixture
async def world(tmp_path: Path, bus: MemBus) -> AsyncIterator[World]:
    async with serving(tmp_path, bus, Fleet(bus), "h1", "h2") as made:
        for host in ("h1", "h2"):
            await made.well("pool.create", None, {"name": f"p-{host}", "spec": {"host": host}})
        yield made


VM = {"name": "web1", "spec": {"image": "i", "memory": "64M", "host": "h1"}}
BUILT = {"source": "build", "recipe": "tiny"}
PLAIN = {"source": "url", "url": "http://x/y", "sha256": SUM}
WITH_TOKEN = {"source": "url", "url": f"http://x/y?token={SECRET}", "sha256": SUM}


async def test_a_damaged_copy_is_replaced_from_another_host(world: World) -> None:
    await world.add(DISK, PLAIN)
    assert (await world.volume("v1", "h2")).state is JobState.DONE
    assert (await world.image()).status.hosts == ["h1", "h2"]
    world.fleet.sound.remove("h2")
    world.fleet.asked.clear()
    assert (await world.volume("v2", "h2")).state is JobState.DONE
    make, fetch = ("h2", VOLUME_CREATE), ("h2", IMAGE_FETCH)
    assert [one for one in world.fleet.asked if one in (make, fetch)] == [make, fetch, make]
    assert (await world.image()).status.hosts == ["h1", "h2"]
    damaged = [event for event in (await world.client.call("event.list")).items if event.kind == "image.damaged"]
    assert [event.message for event in damaged] == ["h2: this host's copy of the image was damaged (disk.raw)"]


@pytest.mark.parametrize("source", [BUILT, PLAIN])
async def test_with_no_sound_copy_left_it_is_made_anew(world: World, source: dict[str, str]) -> None:
    await world.add(DISK, source)
    world.fleet.sound.clear()
    assert (await world.volume("v1", "h1")).state is JobState.DONE
    assert (await world.image()).status.hosts == ["h1"]
    # And one that is damaged where others would take it from.
    world.fleet.sound.clear()
    assert (await world.volume("v2", "h2")).state is JobState.DONE
    assert (await world.image()).status.hosts == ["h2"]


async def test_a_copy_that_is_not_what_it_says_serves_nobody_again(world: World) -> None:
    await world.add(DISK, PLAIN)
    assert (await world.volume("v1", "h2")).state is JobState.DONE
    world.fleet.sound.remove("h2")
    world.fleet.lying.add("h1")
    assert (await world.volume("v2", "h2")).state is JobState.DONE
    assert (await world.image()).status.hosts == ["h2"]


async def test_what_cannot_be_made_anew_is_told_once_and_refused_from_then_on(world: World) -> None:
    await world.add(DISK, WITH_TOKEN)
    assert world.fleet.urls == [WITH_TOKEN["url"]]
    world.fleet.sound.clear()
    job = await world.volume("v1", "h1")
    assert (job.state, job.error is not None) == (JobState.FAILED, True)
    text = job.error.sentence() if job.error else ""
    assert "no host has a sound copy of image i: disk.raw" in text
    assert "(spec.image: i)" in text
    assert "Import it again under another name" in text
    assert (await world.client.call("volume.list")).items == []
    image = await world.image()
    assert (image.status.state, image.status.hosts) == (ImageState.FAILED, [])
    with pytest.raises(SeraiError, match="no host has a sound copy"):
        await world.volume("v2", "h1")
    await world.well("image.delete", "i")


async def test_a_vm_starts_with_a_fresh_copy_of_its_kernel(world: World) -> None:
    await world.add(KERNEL, BUILT)
    world.fleet.sound.clear()
    await world.well("vm.create", None, VM)
    assert world.fleet.sound == {"h1"}
    shown = await world.client.call("vm.show", "web1")
    assert (shown.status.state, shown.status.host) == (VmState.RUNNING, "h1")
    states = [event.data.get("state") for event in (await world.client.call("event.list")).items]
    assert VmState.CRASHED not in states


async def test_a_vm_moves_to_a_host_whose_copy_is_damaged(world: World) -> None:
    await world.add(KERNEL, BUILT)
    await world.well("vm.create", None, VM)
    assert (await world.image()).status.hosts == ["h1", "h2"]
    world.fleet.sound.remove("h2")
    await world.well("vm.migrate", "web1", {"to": "h2"})
    assert world.fleet.asked.count(("h2", MIGRATION_PREPARE)) == 2
    assert world.fleet.sound == {"h1", "h2"}


async def test_an_import_goes_on_with_its_credentials_after_a_restart_and_forgets_them(
    tmp_path: Path, bus: MemBus
) -> None:
    fleet = Fleet(bus)
    fleet.hold_make.clear()
    database = tmp_path / "state"
    async with serving(tmp_path, bus, fleet, "h1") as world:
        job = await world.client.call("image.create", None, {"name": "i", "spec": WITH_TOKEN})
        async with asyncio.timeout(20):
            await fleet.made.wait()
        shown = await world.client.job(job.id)
        assert SECRET not in shown.model_dump_json()
    fleet.made.clear()
    fleet.hold_make.set()
    fleet.manifest = DISK
    async with serving(tmp_path, bus, fleet) as world:
        ended = await asyncio.wait_for(world.client.wait_job(job.id), 20)
        assert ended.state is JobState.DONE, ended.error
        assert SECRET not in ended.model_dump_json()
        assert (await world.image()).spec.url == "http://x/y?token=***"
        assert set(fleet.urls) == {WITH_TOKEN["url"]}
        events = (await world.client.call("event.list")).items
        assert not [event for event in events if SECRET in event.model_dump_json()]
    left = [file for file in database.rglob("*") if file.is_file() and SECRET.encode() in await _bytes(file)]
    assert left == []


async def _bytes(file: Path) -> bytes:
    return await asyncio.to_thread(file.read_bytes)
