"""Files that are none: devices, pipes and folders are refused at once, and so is what is far too large or no URL."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from pathlib import Path

import pytest
import typer
from tests.support.fake_api import FakeApi

from serai.app.cli import parse

from .conftest import Serai

ZEROS = "0" * 64


def strange(kind: str, tmp_path: Path) -> str:
    """Something of a kind that is no regular file."""
    if kind == "fifo":
        os.mkfifo(tmp_path / "fifo")
        return str(tmp_path / "fifo")
    return {"device": "/dev/zero", "folder": str(tmp_path)}[kind]


KINDS = pytest.mark.parametrize("kind", ["device", "fifo", "folder"])
OPTIONS = {
    "--user-data": ("vm", "create", "web1", "--image", "tiny", "--user-data"),
    "--ssh-key": ("vm", "create", "web1", "--image", "tiny", "--ssh-key"),
    "-f": ("apply", "-f"),
    "FILE": ("image", "import", "--sha256", ZEROS),
}


@KINDS
@pytest.mark.parametrize("option", OPTIONS)
def test_only_files_are_read(serai: Serai, api: FakeApi, tmp_path: Path, kind: str, option: str) -> None:
    name = strange(kind, tmp_path)
    ran = serai(*OPTIONS[option], name)
    words = " ".join(ran.err.replace("│", " ").split())
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert "a folder, not a file" in words if kind == "folder" else "a device or pipe, not a file" in words
    assert option in words
    assert api.requests == []


@pytest.mark.parametrize("option", ["--user-data", "--ssh-key", "-f"])
def test_small_files_have_a_bound(serai: Serai, api: FakeApi, tmp_path: Path, option: str) -> None:
    file = tmp_path / "large"
    with file.open("wb") as opened:
        opened.truncate(20 << 20)
    ran = serai(*OPTIONS[option], str(file))
    assert (ran.code, "is larger than" in ran.err) == (2, True), ran.err
    assert api.requests == []


def test_standard_input_has_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, fits in ((10, True), (11, False)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * size)))
        if fits:
            assert parse.read("-", "-f", 10) == "x" * 10
        else:
            with pytest.raises(typer.BadParameter, match="standard input is larger"):
                parse.read("-", "-f", 10)


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("hello")
    (tmp_path / "link").symlink_to("data")
    assert parse.read(str(tmp_path / "link"), "--user-data") == "hello"
    (tmp_path / "data").write_bytes(b"\xff\xfe")
    with pytest.raises(typer.BadParameter, match="no UTF-8"):
        parse.read(str(tmp_path / "link"), "--user-data")


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///x", "ftp://x", "http://[::1", "file:///etc/passwd", "http://a b/x", "http://x:99999/"],
)
def test_what_is_no_url_is_not_even_sent(serai: Serai, api: FakeApi, url: str) -> None:
    ran = serai("image", "import", url, "--sha256", ZEROS, "--name", "i")
    assert (ran.code, ran.out, api.requests) == (1, "", [])
    assert f"(URL: {url})" in ran.err
    assert "import a file by its path" in ran.err


@pytest.mark.parametrize("sha256", ["12ab", "g" * 64, "0" * 65])
@pytest.mark.parametrize("source", ["http://x/disk.raw", "FILE"])
def test_what_is_no_sum_is_not_even_sent(serai: Serai, api: FakeApi, tmp_path: Path, sha256: str, source: str) -> None:
    (tmp_path / "disk.raw").write_bytes(b"disk")
    ran = serai("image", "import", source.replace("FILE", str(tmp_path / "disk.raw")), "--sha256", sha256)
    assert (ran.code, ran.out, api.requests) == (1, "", [])
    assert f"(sha256: {sha256})" in ran.err
    assert "64 hexadecimal digits" in ran.err


def test_no_name_comes_from_a_token(serai: Serai, api: FakeApi) -> None:
    ran = serai("image", "import", "http://x/Disk_1.qcow2?token=geheim.99", "--sha256", ZEROS)
    assert ran.code == 0, ran.err
    (sent,) = [body for name, _, body in api.requests if name == "image.create"]
    assert (sent["name"], sent["spec"]["format"]) == ("disk-1", "qcow2")
    assert sent["spec"]["url"] == "http://x/Disk_1.qcow2?token=geheim.99"
    assert "geheim" not in ran.out + ran.err


def test_applying_a_url_with_credentials_again_changes_nothing(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    api.add("image", "i", {"source": "url", "url": "https://***@x/y?sig=***", "sha256": ZEROS, "format": "raw"})
    file = tmp_path / "site.yaml"
    spec = f"{{source: url, url: 'https://me:geheim99@x/y?sig=geheim99', sha256: '{ZEROS}', format: raw}}"
    file.write_text(f"kind: image\nname: i\nspec: {spec}\n")
    for command in ("diff", "apply"):
        ran = serai(command, "-f", str(file))
        assert ran.code == 0, ran.err
        assert "geheim99" not in ran.out + ran.err
    assert [name for name, _, _ in api.requests if name != "image.show"] == []
    file.write_text(file.read_text().replace("name: i", "name: other"))
    ran = serai("diff", "-f", str(file))
    assert "url: https://***@x/y?sig=***" in ran.out
    assert "geheim99" not in ran.out + ran.err


def test_a_file_that_is_there_is_sent(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"disk")
    sha256 = hashlib.sha256(b"disk").hexdigest()
    ran = serai("image", "import", str(tmp_path / "disk.raw"), "--sha256", sha256.upper())
    assert ran.code == 0, ran.err
    assert bytes(api.uploads["disk"]) == b"disk"


def test_a_file_that_cannot_be_read_to_its_end_is_refused(serai: Serai, api: FakeApi) -> None:
    """It can be opened, and that it is a regular file is all that was seen before."""
    ran = serai("image", "import", "/proc/self/mem", "--name", "mem", "--sha256", ZEROS)
    assert ran.code == 1, ran.out + ran.err
    assert "/proc/self/mem cannot be read: Input/output error (FILE: /proc/self/mem)" in ran.err
    assert "Traceback" not in ran.err
    assert api.requests == []
