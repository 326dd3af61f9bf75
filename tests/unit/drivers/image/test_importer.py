"""Imported images are checked before they count; what is refused leaves nothing, and says why."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from serai.drivers.image.importer import CHUNK, SLOW, from_stream, from_url, inspect, steady
from serai.drivers.image.store import ImageStore
from serai.lib.ids import new_id
from serai.lib.process import run
from serai.lib.room import reserve
from serai.schema.errors import CapacityError, InvalidError, NotFoundError, SeraiError, UnavailableError
from serai.schema.image import ImageKind, ImageManifest

MIB = 1 << 20


def silent(phase: str, fraction: float | None) -> None:
    """For who does not watch."""


async def chunks(data: bytes, size: int = CHUNK) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def take(store: ImageStore, data: bytes, sha256: str | None = None) -> ImageManifest:
    image = new_id()
    async with store.adding(image) as folder:
        await from_stream(chunks(data), len(data), sha256, "cloud", folder, silent)
    return store.manifest(image)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(tmp_path / "images")
    made.open()
    return made


async def made(tmp_path: Path, image_format: str, *options: str) -> Path:
    file = tmp_path / f"made.{image_format}"
    await run(["qemu-img", "create", "-q", "-f", image_format, *options, str(file), "4M"])
    return file


async def test_a_qcow2_image(store: ImageStore, tmp_path: Path) -> None:
    data = (await made(tmp_path, "qcow2")).read_bytes()
    manifest = await take(store, data, hashlib.sha256(data).hexdigest().upper())
    assert (manifest.kind, manifest.format, manifest.virtual_size) == (ImageKind.DISK, "qcow2", 4 * MIB)
    assert manifest.cloud_init
    assert [row.name for row in manifest.files] == ["disk.qcow2"]


async def test_a_raw_image(store: ImageStore) -> None:
    manifest = await take(store, b"\x55" * MIB)
    assert (manifest.format, manifest.virtual_size) == ("raw", MIB)


async def test_progress_is_a_fraction_where_the_size_is_known(tmp_path: Path) -> None:
    seen: list[tuple[str, float | None]] = []
    await from_stream(
        chunks(bytes(4096), 1024), 4096, None, "cloud", tmp_path, lambda phase, fraction: seen.append((phase, fraction))
    )
    assert [fraction for phase, fraction in seen if phase == "receiving"] == [0.25, 0.5, 0.75, 1.0]


async def test_a_wrong_checksum_removes_what_came(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="checksum") as caught:
        await take(store, bytes(MIB), "0" * 64)
    assert caught.value.info.field == "spec.sha256"
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_stream_that_breaks_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1024)
        raise UnavailableError("the sender is gone")

    with pytest.raises(UnavailableError):
        async with store.adding(new_id()) as folder:
            await from_stream(broken(), 4096, None, "cloud", folder, silent)
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_backing_file_is_refused(store: ImageStore, tmp_path: Path) -> None:
    base = await made(tmp_path, "raw")
    file = tmp_path / "overlay.qcow2"
    await run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(file)])
    with pytest.raises(InvalidError, match="another file") as caught:
        await take(store, file.read_bytes())
    assert caught.value.info.remedy is not None
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_data_file_is_refused(store: ImageStore, tmp_path: Path) -> None:
    file = await made(tmp_path, "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on")
    with pytest.raises(InvalidError):
        await take(store, file.read_bytes())
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_backing_file_that_is_a_secret_of_this_host_is_not_read(store: ImageStore, tmp_path: Path) -> None:
    """The name in the header may be anything; it is refused without being opened."""
    file = await made(tmp_path, "qcow2")
    data = bytearray(file.read_bytes())
    name = b"/dev/does-not-exist"
    place = 512
    data[8:20] = struct.pack(">QI", place, len(name))
    data[place : place + len(name)] = name
    with pytest.raises(InvalidError):
        await take(store, bytes(data))


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vpc", "vhdx", "qed"])
async def test_other_formats_are_refused(store: ImageStore, tmp_path: Path, image_format: str) -> None:
    file = await made(tmp_path, image_format)
    with pytest.raises(InvalidError) as caught:
        await take(store, file.read_bytes())
    assert caught.value.info.remedy is not None
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize(
    "head", [b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"BZh9", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"LUKS\xba\xbe"]
)
async def test_compressed_and_encrypted_files_are_refused(store: ImageStore, head: bytes) -> None:
    with pytest.raises(InvalidError):
        await take(store, (head + bytes(4096))[:4096])


async def test_what_is_no_whole_number_of_sectors_is_no_raw_disk(store: ImageStore) -> None:
    for data in (b"text\n", b"\x55" * (MIB - 1)):
        with pytest.raises(InvalidError, match=f"it has {len(data)} bytes") as caught:
            await take(store, data)
        assert (caught.value.info.field, caught.value.info.value) == ("image", "cloud")


@pytest.mark.parametrize("length", [0, 4, 40, 100, MIB])
async def test_a_truncated_qcow2_is_refused(store: ImageStore, tmp_path: Path, length: int) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"\x55" * (4 * MIB))
    file = tmp_path / "whole.qcow2"
    await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(plain), str(file)])
    with pytest.raises(InvalidError):
        await take(store, file.read_bytes()[:length])
    assert list((tmp_path / "images").iterdir()) == []


async def test_inspect_of_a_sound_image(tmp_path: Path) -> None:
    assert await inspect(await made(tmp_path, "qcow2"), "cloud") == ("qcow2", 4 * MIB)


# --- no space ---


async def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    await run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)])
    try:
        store = ImageStore(small / "images")
        store.open()
        with pytest.raises(CapacityError, match="no room") as caught:
            await take(store, b"\x55" * MIB)
        assert caught.value.info.remedy is not None
        assert list((small / "images").iterdir()) == []
    finally:
        await run(["umount", str(small)])


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    await run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)])
    yield folder
    await run(["umount", str(folder)])


@pytest.mark.parametrize("announced", [True, False])
async def test_the_reserve_of_the_file_system_stays_free(small: Path, announced: bool) -> None:
    """It would fit, but the host's journal needs room as well."""
    store = ImageStore(small / "images")
    store.open()
    data = b"\x55" * (MIB - (64 << 10))
    least = MIB

    async def watched() -> AsyncIterator[bytes]:
        nonlocal least
        async for chunk in chunks(data, 16 << 10):
            yield chunk
            room = os.statvfs(small)
            least = min(least, room.f_bavail * room.f_frsize)

    with pytest.raises(CapacityError, match="no room for the image") as caught:
        async with store.adding(new_id()) as folder:
            await from_stream(watched(), len(data) if announced else 0, None, "cloud", folder, silent)
    assert "kept free" in (caught.value.info.remedy or "")
    assert least >= reserve(MIB)
    assert list((small / "images").iterdir()) == []


async def test_more_than_was_announced_is_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="more of the image than the 4096 bytes"):
        async with store.adding(new_id()) as folder:
            await from_stream(chunks(bytes(8192), 1024), 4096, None, "cloud", folder, silent)
    assert list((tmp_path / "images").iterdir()) == []


# --- over http ---

Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A web server on loopback that answers every request in the same way."""

    def __init__(self, answer: Handler) -> None:
        self._answer = answer
        self.asked = b""
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/image"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked = await reader.readuntil(b"\r\n\r\n")
            await self._answer(writer)
            await writer.drain()
        finally:
            writer.close()
            await writer.wait_closed()


def answers(status: str, body: bytes, length: int | None = None) -> Handler:
    async def answer(writer: asyncio.StreamWriter) -> None:
        size = len(body) if length is None else length
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body)

    return answer


async def download(store: ImageStore, url: str, sha256: str | None) -> ImageManifest:
    image = new_id()
    async with store.adding(image) as folder:
        await from_url(url, sha256, "cloud", folder, silent)
    return store.manifest(image)


async def test_a_download(store: ImageStore) -> None:
    data = b"\x55" * MIB
    async with Server(answers("200 OK", data)) as server:
        manifest = await download(store, server.url, hashlib.sha256(data).hexdigest())
    assert manifest.files[0].size == MIB


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (answers("404 Not Found", b""), NotFoundError),
        (answers("500 Oops", b""), UnavailableError),
        (answers("200 OK", b"short", length=4096), UnavailableError),
        (answers("200 OK", b"another file"), InvalidError),
    ],
)
async def test_a_download_that_fails_leaves_nothing(
    store: ImageStore, tmp_path: Path, answer: Handler, error: type[SeraiError]
) -> None:
    async with Server(answer) as server:
        with pytest.raises(error):
            await download(store, server.url, "0" * 64)
    assert list((tmp_path / "images").iterdir()) == []


async def test_an_image_that_the_server_packs_is_refused(store: ImageStore, tmp_path: Path) -> None:
    """A small body that unpacks to any size: nothing of it is unpacked."""
    body = gzip.compress(bytes(8 * MIB))

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)

    async with Server(answer) as server:
        with pytest.raises(InvalidError, match=r"packs the image \(gzip\)") as caught:
            await download(store, server.url, hashlib.sha256(bytes(8 * MIB)).hexdigest())
    assert (caught.value.info.field, caught.value.info.value) == ("spec.url", server.url)
    assert b"accept-encoding: identity\r\n" in server.asked.lower()
    assert list((tmp_path / "images").iterdir()) == []


async def test_nobody_there(store: ImageStore) -> None:
    async with Server(answers("200 OK", b"")) as server:
        url = server.url
    with pytest.raises(UnavailableError, match="download failed"):
        await download(store, url, "0" * 64)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", "", "http://", "http://["])
async def test_urls_that_are_none(store: ImageStore, url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        await download(store, url, "0" * 64)
    assert caught.value.info.field == "spec.url"


async def test_plain_http_needs_a_checksum(store: ImageStore) -> None:
    with pytest.raises(InvalidError, match="checksum") as caught:
        await download(store, "http://127.0.0.1:1/image", None)
    assert caught.value.info.field == "spec.sha256"


async def test_content_of_another_format_than_was_told(store: ImageStore, tmp_path: Path) -> None:
    """A server's error page, saved as an image, would else become a raw disk."""
    with pytest.raises(InvalidError, match="the content is raw, not qcow2") as caught:
        async with store.adding(new_id()) as folder:
            await from_stream(chunks(b"<html>no such file</html>"), 0, None, "cloud", folder, silent, "qcow2")
    assert (caught.value.info.field, caught.value.info.value) == ("spec.format", "qcow2")
    assert list((tmp_path / "images").iterdir()) == []


async def test_an_image_that_cannot_fit_is_refused_before_it_comes(tmp_path: Path) -> None:
    asked = []

    async def watched() -> AsyncIterator[bytes]:
        asked.append("a byte")
        yield b"."

    with pytest.raises(CapacityError, match="no room for the image: it needs") as caught:
        await from_stream(watched(), 1 << 60, None, "cloud", tmp_path, silent)
    assert caught.value.info.remedy
    assert asked == []
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_sends_next_to_nothing_is_given_up() -> None:
    window, least = SLOW

    async def drip(size: int) -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(size)

    def clock() -> Callable[[], float]:
        """A quarter of the window goes by with each look."""
        looks = iter(range(10_000))
        return lambda: next(looks) * window / 4

    with pytest.raises(UnavailableError, match="given up") as caught:
        [chunk async for chunk in steady(drip(1), "http://there/disk", clock())]
    assert (caught.value.info.field, caught.value.info.value) == ("spec.url", "http://there/disk")
    came = [len(chunk) async for chunk in steady(drip(least), "http://there/disk", clock())]
    assert sum(came) == 100 * least
    assert min(came[:-1]) >= CHUNK
