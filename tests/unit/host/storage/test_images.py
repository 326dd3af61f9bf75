"""A host's images between two hosts over real TLS on loopback: a damaged copy is neither served nor kept."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serai.drivers.image import importer
from serai.drivers.image.base import write_manifest
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.fake import FakeBuilder
from serai.drivers.image.store import ImageStore
from serai.host.storage.images import HostImages
from serai.lib.ids import new_id
from serai.lib.pki import CertificateAuthority, TlsFiles
from serai.lib.stream import StreamServer
from serai.schema.commands.image import CreateImage, DeleteImage, FetchImage
from serai.schema.errors import ConflictError, InvalidError, NotFoundError, SeraiError
from serai.schema.ids import ImageId, VmId
from serai.schema.image import ImageKind, ImageManifest, ImageSource, ImageSpec
from serai.schema.launch import KernelBoot, Launch
from serai.schema.ticket import Purpose, Ticket

CONTENT = b"disk" * 100_000
BUILD = ImageSpec(source=ImageSource.BUILD, recipe="fake")


def silent(phase: str, fraction: float | None) -> None:
    """For who does not watch."""


class Hosts:
    """`h1` serves; `h2` fetches."""

    def __init__(self, folder: Path) -> None:
        authority = CertificateAuthority.create(folder / "ca")
        self.builder = FakeBuilder(CONTENT)
        self.cache = folder / "cache"
        self.tls: dict[str, TlsFiles] = {}
        self.images: dict[str, HostImages] = {}
        self.stores: dict[str, ImageStore] = {}
        for name in ("h1", "h2"):
            tls = authority.issue(f"host.{name}", dns=[], ips=["127.0.0.1"], dir=folder / "pki" / name)
            store = self.stores[name] = ImageStore(folder / name)
            store.open()
            builders = {"fake": functools.partial(ensure_image, self.builder, self.cache)}
            self.images[name] = HostImages(store=store, builders=builders, importer=importer, tls=tls)
            self.tls[name] = tls
        self.tickets: dict[str, Ticket] = {}
        handlers = {str(Purpose.IMAGE_READ): self.images["h1"].serve_read}
        self.server = StreamServer(self.tls["h1"], ("127.0.0.1", 0), self._redeem, handlers)

    async def _redeem(self, ticket_id: str, _peer: str) -> Ticket:
        return self.tickets.pop(ticket_id)

    async def add(self) -> tuple[str, ImageManifest]:
        """An image on h1."""
        image, store = new_id(ImageId), self.images["h1"].store
        async with store.adding(image) as folder:
            (folder / "disk.raw").write_bytes(CONTENT)
            await write_manifest(folder, name="some", kind=ImageKind.DISK, files=["disk.raw"], image_format="raw")
        return image, store.manifest(image)

    async def fetch(self, image: str, manifest: ImageManifest) -> None:
        """Have h2 take a copy."""
        ticket = Ticket(
            id=os.urandom(16).hex(),
            purpose=Purpose.IMAGE_READ,
            resource=image,
            holder="host.h2",
            server="host.h1",
            expires=datetime.now(UTC) + timedelta(minutes=1),
        )
        self.tickets[ticket.id] = ticket
        body = FetchImage(
            image=ImageId(image),
            manifest=manifest,
            address="127.0.0.1",
            port=self.server.port,
            server="host.h1",
            ticket=ticket.id,
        )
        await self.images["h2"].fetch(body, silent)

    def file(self, host: str, image: str) -> Path:
        return self.stores[host].folder(image) / "disk.raw"


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Hosts]:
    made = Hosts(tmp_path)
    async with made.server:
        yield made


def damage(file: Path) -> None:
    """One byte, in place; seen in the times even within a tick of the clock."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"X")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


async def test_a_copy_is_taken(hosts: Hosts) -> None:
    image, manifest = await hosts.add()
    await hosts.fetch(image, manifest)
    assert hosts.file("h2", image).read_bytes() == CONTENT
    assert hosts.file("h2", image).stat().st_mode & 0o777 == 0o444
    assert (await hosts.images["h2"].store.check(image)).files == manifest.files


async def test_a_damaged_copy_is_taken_again(hosts: Hosts) -> None:
    image, manifest = await hosts.add()
    await hosts.fetch(image, manifest)
    damage(hosts.file("h2", image))
    await hosts.fetch(image, manifest)
    assert hosts.file("h2", image).read_bytes() == CONTENT


async def test_a_copy_of_another_manifest_is_taken_again(hosts: Hosts) -> None:
    image, manifest = await hosts.add()
    async with hosts.images["h2"].store.adding(image) as folder:
        (folder / "disk.raw").write_bytes(b"old")
        await write_manifest(folder, name="old", kind=ImageKind.DISK, files=["disk.raw"], image_format="raw")
    await hosts.fetch(image, manifest)
    assert hosts.file("h2", image).read_bytes() == CONTENT


async def test_two_at_once_take_one_copy(hosts: Hosts) -> None:
    image, manifest = await hosts.add()
    await asyncio.gather(*(hosts.fetch(image, manifest) for _ in range(3)))
    assert hosts.file("h2", image).read_bytes() == CONTENT
    assert len(hosts.tickets) == 2


async def test_a_damaged_copy_is_not_served(hosts: Hosts) -> None:
    image, manifest = await hosts.add()
    damage(hosts.file("h1", image))
    with pytest.raises(NotFoundError) as caught:
        await hosts.fetch(image, manifest)
    # By this the controller knows whose copy is gone.
    assert (caught.value.info.field, caught.value.info.value) == ("image", image)
    for host in ("h1", "h2"):
        assert list(hosts.stores[host].folder(image).parent.iterdir()) == []


async def test_damage_that_no_stat_shows_is_found_when_it_is_served(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a disk that gives other bytes than were written: size and times are right."""
    image, manifest = await hosts.add()
    store = hosts.stores["h1"]
    damage(hosts.file("h1", image))

    async def fits(_image: str) -> ImageManifest:
        return manifest

    monkeypatch.setattr(store, "check", fits)
    with pytest.raises(InvalidError) as caught:
        await hosts.fetch(image, manifest)
    assert caught.value.info.field == "sha256"
    assert not hosts.stores["h2"].folder(image).exists()
    async with asyncio.timeout(20):
        while store.folder(image).exists():  # the serving end sees it a moment later
            await asyncio.sleep(0.01)


async def test_what_a_vm_boots_from_is_checked(hosts: Hosts) -> None:
    image, _ = await hosts.add()
    images = hosts.images["h1"]
    launch = Launch(
        vm=new_id(VmId), name="web1", generation=1, machine="microvm", accel="tcg", cpus=1, max_cpus=1, memory=64 << 20,
        uuid="00000000-0000-0000-0000-000000000001",
    )  # fmt: skip
    await images.check_boot(launch)
    launch = launch.model_copy(update={"boot": KernelBoot(image=ImageId(image), kernel="disk.raw")})
    await images.check_boot(launch)
    hosts.file("h1", image).unlink()
    with pytest.raises(NotFoundError, match=r"disk\.raw is missing"):
        await images.check_boot(launch)


async def test_a_damaged_image_is_built_again_and_so_is_a_damaged_one_in_the_cache(hosts: Hosts) -> None:
    images, image = hosts.images["h1"], new_id(ImageId)
    body = CreateImage(image=image, name="some", spec=BUILD)
    await images.make(body, silent)
    await images.make(body, silent)
    assert hosts.builder.builds == 1
    hosts.file("h1", image).unlink()
    await images.make(body, silent)
    assert hosts.builder.builds == 1, "the cache has it"
    damage(hosts.file("h1", image))
    (cached,) = hosts.cache.glob("*/disk.raw")
    damage(cached)
    await images.make(body, silent)
    assert hosts.builder.builds == 2
    assert hosts.file("h1", image).read_bytes() == CONTENT


async def test_an_import_that_fails_leaves_the_copy_alone(hosts: Hosts) -> None:
    image, manifest = await hosts.add()
    await hosts.fetch(image, manifest)
    with contextlib.suppress(SeraiError):
        async with hosts.images["h2"].store.adding(image) as folder:
            (folder / "disk.raw").write_bytes(b"half")
    assert (await hosts.images["h2"].store.check(image)).files == manifest.files


async def test_an_import_that_is_given_up_ends_and_leaves_nothing(hosts: Hosts) -> None:
    """The server that it comes from sends a little, and then nothing for as long as it likes."""
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n" + bytes(1000))
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
        writer.close()
        gone.set()

    images, store, image = hosts.images["h1"], hosts.stores["h1"], new_id(ImageId)
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/disk.raw"
        body = CreateImage(image=image, name="big", spec=ImageSpec(source=ImageSource.URL, url=url, sha256="0" * 64))
        begun = asyncio.Event()
        making = asyncio.create_task(images.make(body, lambda _phase, _part: begun.set()))
        late = asyncio.create_task(images.make(body, silent))
        part = store.folder(image).with_name(f".part-{image}")
        async with asyncio.timeout(30):
            while not (part / "incoming").exists():
                await asyncio.sleep(0.01)
            await images.drop(DeleteImage(image=image))
            for each in (making, late):
                with pytest.raises(ConflictError, match="deleted while it was being created"):
                    await each
            await gone.wait()
    assert not store.folder(image).exists()
    assert not part.exists()
