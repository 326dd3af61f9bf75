"""URLs of images: which are ones, and that nobody sees what is secret in them."""

from __future__ import annotations

import pytest

from serai.lib.imageurl import check_sha256, check_url, hide_url, masked_url
from serai.lib.redact import redact
from serai.schema.errors import InvalidError

GOOD = [
    "http://10.77.0.2:8000/disk.raw",
    "https://images.example/debian/12/disk.qcow2?version=3#top",
    "https://user:pa%20ss@images.example:443/x",
    "http://[fe80::1]:80/x",
    "http://localhost",
    "http://under_score.example./x",
    "HTTP://EXAMPLE/x",
]
BAD = [
    "", "http://", "http:///x", "ftp://x", "http://[::1", "file:///etc/passwd", "/etc/passwd", "http://a b/x",
    "http://x/a b", "http://x:99999/", "http://x:port/", "http://x:-1/", "http://user@/x", "http://?x",
    "http://x/\n", "http://x\\y/", "http://1.2.3.256/",
    "http://[1.2.3.4]/", "http://[::g]/", "javascript:alert(1)", "http:x", "http:/x/y", "//x/y",
    "http://x/" + "y" * 5000, "http://x/\0",
]  # fmt: skip


@pytest.mark.parametrize("url", GOOD)
def test_urls(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_url(url, "URL")
    info = caught.value.info
    assert (info.field, caught.value.status) == ("URL", 422)
    assert info.value == masked_url(url)[:200]
    assert "import a file by its path" in (info.remedy or "")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:geheim99@x y/z", "ftp://me:geheim99@x/z", "http://me:geheim99@[::1/z", "http:me:geheim99@x",
        "http://me:geheim99@x:99999/", "http://x:99999/?token=geheim99", "file:///x?geheim99", "http://[::1?k=geheim99",
    ],
)  # fmt: skip
def test_a_refusal_shows_no_credentials(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_url(url)
    assert "geheim99" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://x/y", "https://x/y"),
        ("https://x/y?", "https://x/y?"),
        ("https://x/y?raw&a=", "https://x/y?raw&a="),
        ("https://x/y#top", "https://x/y#top"),
        ("https://me:pw@x:8/y", "https://***@x:8/y"),
        ("https://token@x/y", "https://***@x/y"),
        ("https://x/y?a=1&sig=abc%2F", "https://x/y?a=***&sig=***"),
        ("https://x/y?0123456789abcdef", "https://x/y?***"),
        ("https://x/y?a=b=c", "https://x/y?a=***"),
        ("https://x/y#access_token=1", "https://x/y#***"),
        ("https://me:p@ss@x/y", "https://***@x/y"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert masked_url(url) == shown
    assert masked_url(shown) == shown


def test_what_is_hidden_is_in_no_log() -> None:
    hide_url("https://walter:hunter%2B12345@x/y?sig=abcdefgh%3D")
    for line in ("hunter%2B12345", "hunter+12345", "abcdefgh%3D", "abcdefgh=", "walter:hunter+12345"):
        assert redact(f"GET {line} 200") == "GET *** 200"
    assert redact("x/y") == "x/y"


@pytest.mark.parametrize("text", ["", "12ab", "g" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", " " + "0" * 63])
def test_what_is_no_sum(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_sha256(text)
    assert (caught.value.info.field, caught.value.info.value) == ("spec.sha256", text)
    assert "64 hexadecimal digits" in (caught.value.info.remedy or "")


def test_a_sum_is_lower_case() -> None:
    assert check_sha256("AB" * 32) == "ab" * 32
