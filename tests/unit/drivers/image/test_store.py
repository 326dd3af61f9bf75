"""The image store: images are whole or not there, and only their own files can be reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from serai.drivers.image.base import MANIFEST, read_manifest, write_manifest
from serai.drivers.image.store import ImageStore
from serai.lib.ids import new_id
from serai.schema.errors import HostError, InvalidError, NotFoundError
from serai.schema.image import ImageKind


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(tmp_path / "images")
    made.open()
    return made


async def add(store: ImageStore, kind: ImageKind = ImageKind.DISK) -> str:
    image = new_id()
    async with store.adding(image) as folder:
        (folder / "disk.raw").write_bytes(b"disk" * 256)
        await write_manifest(
            folder,
            name="test",
            kind=kind,
            files=["disk.raw"],
            image_format="raw",
            virtual_size=1024,
            packages={"linux": "6.1"},
        )
    return image


async def test_an_image_with_its_manifest(store: ImageStore) -> None:
    image = await add(store)
    assert store.folder(image).exists()
    manifest = store.manifest(image)
    assert (manifest.name, manifest.kind, manifest.virtual_size) == ("test", ImageKind.DISK, 1024)
    assert manifest.packages == {"linux": "6.1"}
    (row,) = manifest.files
    assert (row.name, row.size) == ("disk.raw", 1024)
    file, image_format = await store.checked_disk(image)
    assert (file.read_bytes(), image_format) == (b"disk" * 256, "raw")
    assert file.stat().st_mode & 0o777 == 0o444
    assert file.parent.stat().st_mode & 0o777 == 0o755


async def test_a_failed_addition_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    image = new_id()
    with pytest.raises(RuntimeError):
        async with store.adding(image) as folder:
            (folder / "disk.raw").write_bytes(b"half")
            raise RuntimeError("the download broke")
    assert not store.folder(image).exists()
    assert list((tmp_path / "images").iterdir()) == []


async def test_an_addition_without_a_manifest_is_none(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        async with store.adding(new_id()):
            pass
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_file_that_changed_after_its_manifest_is_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="checksum"):
        async with store.adding(new_id()) as folder:
            (folder / "disk.raw").write_bytes(b"one")
            await write_manifest(folder, name="test", kind=ImageKind.DISK, files=["disk.raw"], image_format="raw")
            (folder / "disk.raw").write_bytes(b"two")
    assert list((tmp_path / "images").iterdir()) == []


async def test_opening_sweeps_what_a_crash_left_and_nothing_else(store: ImageStore, tmp_path: Path) -> None:
    image = await add(store)
    part = tmp_path / "images" / f".part-{new_id()}"
    part.mkdir()
    (part / "incoming").write_bytes(b"half")
    ImageStore(tmp_path / "images").open()
    assert not part.exists()
    assert store.folder(image).exists()


@pytest.mark.parametrize("image", ["", "..", "../etc", "/etc", "abc", "ABCDEF012345", "0123456789a/", "0123456789abc"])
def test_an_id_cannot_lead_out_of_the_store(store: ImageStore, image: str) -> None:
    for reach in (store.folder, store.manifest, store.delete):
        with pytest.raises(InvalidError):
            reach(image)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", ".", MANIFEST, "disk.qcow2"])
async def test_only_files_of_the_manifest_can_be_reached(store: ImageStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "images" / "secret").write_bytes(b"secret")
    image = await add(store)
    with pytest.raises(InvalidError) as caught:
        store.file(image, name)
    assert caught.value.info.field == "file"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", ".part", ""])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    rows = [{"name": name, "size": 1, "sha256": "0" * 64}]
    (tmp_path / MANIFEST).write_text(json.dumps({"name": "test", "kind": "disk", "files": rows}), encoding="utf-8")
    with pytest.raises(ValidationError):
        read_manifest(tmp_path)


async def test_a_kernel_image_has_no_disk(store: ImageStore) -> None:
    image = await add(store, ImageKind.KERNEL)
    with pytest.raises(InvalidError, match="no disk"):
        await store.checked_disk(image)


async def test_deleting_twice_is_deleting(store: ImageStore) -> None:
    image = await add(store)
    store.delete(image)
    store.delete(image)
    assert not store.folder(image).exists()
    with pytest.raises(NotFoundError):
        store.manifest(image)


async def test_the_files_of_a_manifest_are_in_order(tmp_path: Path) -> None:
    for name in ("vmlinuz", "initrd.img"):
        (tmp_path / name).write_bytes(name.encode())
    written = await write_manifest(tmp_path, name="k", kind=ImageKind.KERNEL, files=["vmlinuz", "initrd.img"])
    assert [row.name for row in written.files] == ["initrd.img", "vmlinuz"]
    assert read_manifest(tmp_path) == written
