"""URLs with credentials, against real web servers on loopback: the download works, and nobody sees them."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from serai.drivers.image.importer import from_url
from serai.lib.redact import redact
from serai.schema.errors import SeraiError, UnavailableError

DATA = b"\x55" * 4096
SHA256 = hashlib.sha256(DATA).hexdigest()
USER, PASSWORD, TOKEN = "walter", "hunter/99 x", "t0kenValue"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Site:
    """Gives the image to who knows the password or the token; `/to` leads to the other site's `/token`."""

    def __init__(self, target: str = "") -> None:
        self.asked: list[str] = []

        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                parts = urlsplit(self.path)
                if parts.path == "/to":
                    self.send_response(302)
                    self.send_header("Location", target)
                    self.end_headers()
                    return
                token = parse_qs(parts.query).get("token", [""])[0]
                known = self.headers.get("Authorization") == BASIC or token == TOKEN
                body = DATA if known and parts.path != "/cut" else DATA[:7] if known else b""
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(DATA if known else b"")))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.at = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def leading(site: Site) -> Iterator[Site]:
    made = Site(f"http://{site.at}/x?token={TOKEN}")
    yield made
    made.close()


async def fetch(url: str, folder: Path) -> None:
    await from_url(url, SHA256, "cloud", folder, lambda phase, fraction: None)


def check_hidden(texts: list[str]) -> None:
    for text in texts:
        for secret in (PASSWORD, "hunter", TOKEN, BASIC):
            assert secret not in text


@pytest.mark.parametrize("path", [f"{USER}:hunter%2F99%20x@AT/x", f"AT/x?token={TOKEN}"])
async def test_a_download_with_credentials(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    await fetch(f"http://{path.replace('AT', site.at)}", tmp_path)
    assert (tmp_path / "disk.raw").read_bytes() == DATA
    # Log files get redacted lines: lib/service.py.
    assert any("HTTP Request" in record.getMessage() for record in caplog.records)
    check_hidden([redact(record.getMessage()) for record in caplog.records if record.levelno > logging.DEBUG])


async def test_a_redirect_to_a_url_with_a_token(
    leading: Site, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await fetch(f"http://{leading.at}/to", tmp_path)
    assert site.asked == [f"/x?token={TOKEN}"]
    check_hidden([redact(record.getMessage()) for record in caplog.records])


@pytest.mark.parametrize(
    "path",
    [
        f"{USER}:hunterwrong@AT/x",
        f"AT/x?token={TOKEN}wrong",
        f"AT/cut?token={TOKEN}",
        f"{USER}:hunter%2F99%20x@AT/cut",
        f"{USER}:hunter%2F99%20x@127.0.0.1:1/x?token={TOKEN}",
    ],
)
async def test_a_failure_does_not_show_them(site: Site, tmp_path: Path, path: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        await fetch(f"http://{path.replace('AT', site.at)}", tmp_path)
    info = caught.value.info
    check_hidden([str(caught.value), info.model_dump_json(), "".join(traceback.format_exception(caught.value))])
    assert info.field == "spec.url"
    assert "***" in (info.value or "")


async def test_a_redirect_to_what_is_no_url(tmp_path: Path) -> None:
    for target in ("file:///etc/passwd", "http://[::1", "http://127.0.0.1:99999/", "gopher://x/"):
        made = Site(target)
        try:
            with pytest.raises(SeraiError) as caught:
                await fetch(f"http://{made.at}/to", tmp_path)
        finally:
            made.close()
        assert caught.value.info.field == "spec.url"
